"""The images of a folder with a subfolder per class, listed once and remembered.

Listing ImageNet's 1.3 million files takes minutes on a network disk. The list is therefore kept in the user's cache
folder, with the modification time of every folder. A file that is added or removed changes the time of its folder, and
then everything is listed anew.
"""

import functools
import hashlib
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
from mmengine.logging import print_log
from torchvision.datasets.folder import IMG_EXTENSIONS

from metala_vision.errors import InputError
from metala_vision.kernels.cache import CacheError, cache_folder, make_private, open_trusted, write_private

SETTLED = 2.0  # seconds: a folder that changed more recently may change again without a new modification time


def list_images(folder: Path, cache: bool = True) -> tuple[list[str], list[str], np.ndarray]:
    """Classes, image paths in a fixed order, and labels [N] of folder/CLASS/.../IMAGE.

    Hidden files and folders are left out: they hold thumbnails and checkpoints, copies of images that would leak from
    one split into another.

    Raises:
        InputError: no class folders, or one without images.
    """
    folders = _folders(folder, cache)
    classes = class_names(folder)
    members: dict[str, list[str]] = {name: [] for name in classes}
    for relative, (_, files) in folders.items():
        if relative != ".":
            members[relative.split(os.sep)[0]] += [os.path.join(relative, file) for file in files]
    empty = [name for name in classes if not members[name]]
    if empty:
        endings = ", ".join(IMG_EXTENSIONS)
        raise InputError(
            f"--data-root (root): class folder {folder / empty[0]} has no images; expected files ending in {endings}"
        )
    paths = [os.path.join(folder, file) for name in classes for file in sorted(members[name])]
    labels = np.repeat(np.arange(len(classes)), [len(members[name]) for name in classes])
    return classes, paths, labels


def all_images(folder: Path, cache: bool = True) -> list[str]:
    """Paths of all images under a folder, at any depth, sorted; hidden ones are left out as by `list_images`."""
    folders = _folders(folder, cache)
    return sorted(
        os.path.normpath(os.path.join(folder, place, name)) for place in folders for name in folders[place][1]
    )


def class_names(folder: Path) -> list[str]:
    """The names of the class folders, sorted.

    Raises:
        InputError: there are none.
    """
    classes = _subfolders(folder)
    if not classes:
        raise InputError(f"--data-root (root): {folder} has no class folders; expected {folder}/CLASS/IMAGE")
    return classes


def has_classes(folder: Path) -> bool:
    """Whether there is any class folder."""
    return bool(_subfolders(folder))


def _folders(folder: Path, cache: bool) -> dict[str, tuple[int, list[str]]]:
    """What `_listed` finds, or what an earlier process found if nothing has changed since."""
    folders = _remembered(folder) if cache else None
    if folders is None:
        folders = _listed(folder)
        if cache:
            _remember(folder, folders)
    return folders


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _listed(folder: Path) -> dict[str, tuple[int, list[str]]]:
    """Relative folder -> (its modification time in ns, names of the images right in it)."""
    folders = {}
    waiting: list[tuple[Path, frozenset]] = [(folder, frozenset())]  # each with the folders that it lies in
    while waiting:
        place, around = waiting.pop()
        status = os.stat(place)
        changed = status.st_mtime_ns  # taken before the folder is read: later changes make it newer
        itself = (status.st_dev, status.st_ino)
        if itself in around:
            raise InputError(f"--data-root (root): {place} is a link to a folder that it lies in; remove it")
        images = []
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append((Path(entry.path), around | {itself}))
                elif entry.name.lower().endswith(IMG_EXTENSIONS):
                    images.append(entry.name)
        folders[os.path.relpath(place, folder)] = (changed, images)
    return folders


def _cache_file(folder: Path) -> Path | None:
    """The file that keeps the list of a folder; None, with a warning, where the user has no private cache folder."""
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
    try:
        make_private(cache_folder())
        make_private(cache_folder() / "folders")
    except OSError as error:  # or CacheError, which is one
        _say_once(f"lists of files are not kept: {error}")
        return None
    return cache_folder() / "folders" / f"{key}.json"


@functools.cache
def _say_once(text: str) -> None:
    print_log(text, logger="current", level=logging.WARNING)


def _remembered(folder: Path) -> dict[str, tuple[int, list[str]]] | None:
    """The list that an earlier process kept, if no folder has changed since."""
    path = _cache_file(folder)
    if path is None:
        return None
    try:
        with open_trusted(path) as file:  # training must not use a list that somebody else wrote
            kept = json.load(file)
        folders = {name: (changed, files) for name, (changed, files) in kept["folders"].items()}
        if kept["folder"] != str(folder.resolve()):
            return None
        current = all(os.stat(folder / name).st_mtime_ns == changed for name, (changed, _) in folders.items())
    except CacheError as error:
        _say_once(f"the list of {folder} is made anew: {error}")
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, of another version, or half a file
        return None
    return folders if current else None


def _remember(folder: Path, folders: dict[str, tuple[int, list[str]]]) -> None:
    if max(changed for changed, _ in folders.values()) > (time.time() - SETTLED) * 1e9:
        return
    path = _cache_file(folder)
    if path is None:
        return
    try:
        write_private(path, json.dumps(dict(folder=str(folder.resolve()), folders=folders)).encode())
    except OSError as error:  # a full or read-only home: the next start lists the folder again
        print_log(f"the list of {folder} could not be kept: {error}", logger="current", level=logging.WARNING)
