"""The images of a folder with a subfolder per class, listed once and remembered.

A listing of ImageNet's 1.3 million files takes minutes on a network disk. It is kept under the user's cache folder with
the modification time of every folder in it; a folder in which a file came or went is newer, and all is listed anew.
"""

import contextlib
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

SETTLED = 2.0  # seconds: a folder changed more recently may change again within the same tick of its clock


def list_images(folder: Path, cache: bool = True) -> tuple[list[str], list[str], np.ndarray]:
    """Classes, image paths in a fixed order, and labels [N] of folder/CLASS/.../IMAGE.

    Hidden files and folders are left out: they hold thumbnails and checkpoints, copies of images that would leak.

    Raises:
        InputError: no class folders, or one without images.
    """
    folders = _remembered(folder) if cache else None
    if folders is None:
        folders = _listed(folder)
        if cache:
            _remember(folder, folders)
    classes = class_names(folder)
    members: dict[str, list[str]] = {name: [] for name in classes}
    for relative, (_, files) in folders.items():
        if relative != ".":
            members[relative.split(os.sep)[0]] += [os.path.join(relative, file) for file in files]
    empty = [name for name in classes if not members[name]]
    if empty:
        endings = ", ".join(IMG_EXTENSIONS)
        raise InputError(f"root: class folder {folder / empty[0]} has no images; expected files ending in {endings}")
    paths = [os.path.join(folder, file) for name in classes for file in sorted(members[name])]
    labels = np.repeat(np.arange(len(classes)), [len(members[name]) for name in classes])
    return classes, paths, labels


def class_names(folder: Path) -> list[str]:
    """The names of the class folders, sorted.

    Raises:
        InputError: there are none.
    """
    classes = _subfolders(folder)
    if not classes:
        raise InputError(f"root: {folder} has no class folders; expected {folder}/CLASS/IMAGE")
    return classes


def has_classes(folder: Path) -> bool:
    """Whether there is any class folder."""
    return bool(_subfolders(folder))


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _listed(folder: Path) -> dict[str, tuple[int, list[str]]]:
    """Relative folder -> (its modification time in ns, names of the images right in it)."""
    folders = {}
    waiting: list[tuple[Path, frozenset]] = [(folder, frozenset())]  # and what it lies in
    while waiting:
        place, around = waiting.pop()
        status = os.stat(place)
        changed = status.st_mtime_ns  # before it is read: what comes after makes it newer
        itself = (status.st_dev, status.st_ino)
        if itself in around:
            raise InputError(f"root: {place} is a link to a folder that it lies in; remove it")
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


def _cache_file(folder: Path) -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
    return Path(root if root else Path.home() / ".cache") / "metala_vision" / "folders" / f"{key}.json"


def _remembered(folder: Path) -> dict[str, tuple[int, list[str]]] | None:
    """The listing of an earlier time, if every folder is as old as it was then."""
    path = _cache_file(folder)
    try:
        kept = json.loads(path.read_bytes())
        folders = {name: (changed, files) for name, (changed, files) in kept["folders"].items()}
        if kept["folder"] != str(folder.resolve()):
            return None
        current = all(os.stat(folder / name).st_mtime_ns == changed for name, (changed, _) in folders.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, of another time, or half a file
        return None
    return folders if current else None


def _remember(folder: Path, folders: dict[str, tuple[int, list[str]]]) -> None:
    if max(changed for changed, _ in folders.values()) > (time.time() - SETTLED) * 1e9:
        return
    path = _cache_file(folder)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.write_text(json.dumps(dict(folder=str(folder.resolve()), folders=folders)))
        os.replace(partial, path)
    except OSError as error:  # a full or read-only home: the next start lists the folder again
        with contextlib.suppress(OSError):
            partial.unlink()
        print_log(f"the list of {folder} could not be kept: {error}", logger="current", level=logging.WARNING)
