"""Checks that the pictures that annotations name are there, before a training meets the first one that is not."""

import os
from collections.abc import Sequence
from pathlib import Path

from metala_vision.errors import InputError


def check_there(argument: str, paths: Sequence[Path], folder: Path, max_share: float) -> None:
    """Looks for every picture. Folders are listed once each: to ask for every file takes minutes on a network disk.

    Args:
        argument: name of the argument that gives the pictures, for messages.
        paths: paths of all pictures.
        folder: where they are looked for.
        max_share: share of the pictures that may be missing; each of those is reported when it is loaded.

    Raises:
        InputError: more are missing; the message says what lies nearest.
    """
    listings: dict[Path, set[str]] = {}
    for parent in {path.parent for path in paths}:
        try:
            listings[parent] = set(os.listdir(parent))
        except OSError:
            listings[parent] = set()
    # A disk may find a name in another case than that of its listing
    missing = [path for path in paths if path.name not in listings[path.parent] and not path.exists()]
    if len(missing) > max_share * len(paths):
        raise InputError(
            f"{argument}: {len(missing)} of the {len(paths)} pictures that the annotations name are not there, more "
            f"than max_share={max_share:g}; the first: {missing[0]}{_hint(missing[0], folder, listings)}"
        )


def _hint(path: Path, folder: Path, listings: dict[Path, set[str]]) -> str:
    """What may be wrong with the name of a missing picture; empty where nothing like it is found."""
    within = path.relative_to(folder)
    if within.parts[0] == folder.name and (folder.parent / within).is_file():
        return f". The names begin with {folder.name}/ already: give the folder above it, {folder.parent}"
    if (folder / within.name).is_file():
        return f". There is {folder / within.name}: the names have folders before them that are not there"
    alike = sorted(name for name in listings[path.parent] if Path(name).stem == path.stem)
    return f". There is {alike[0]}, with another suffix" if alike else ""
