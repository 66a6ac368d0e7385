"""The user's cache folder, and whether what lies in it may be loaded as code."""

import os
import stat
from pathlib import Path


class CacheError(OSError):
    """There is no cache folder, or one that somebody else could have written to; the message says why."""


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/metala_vision, by default ~/.cache/metala_vision.

    Raises:
        CacheError: a user without a home, as containers run processes under numbers that nobody has given a name.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(root):  # a relative one is to be ignored, says the specification
        return Path(root) / "metala_vision"
    try:
        return Path.home() / ".cache" / "metala_vision"
    except RuntimeError as error:
        raise CacheError("this user has no home: set XDG_CACHE_HOME to a folder that is theirs alone") from error


def make_private(folder: Path) -> None:
    """Makes a folder, and what is missing above it, for this user alone, whatever the umask."""
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)


def check_trusted(path: Path) -> None:
    """Whether nobody but this user and root could have written a file, or what lies in a folder.

    A folder that passes keeps others from exchanging its files between this check and their use.

    Raises:
        CacheError: somebody else could; the message names the path and what to do.
        FileNotFoundError: it is not there.
    """
    if not hasattr(os, "geteuid"):  # Windows: the profile's folders are its user's
        return
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode) and not path.is_dir():
        raise CacheError(f"{path} is a link: remove it")
    if stat.S_ISLNK(status.st_mode):
        path = path.resolve()
        status = os.lstat(path)
    if status.st_uid not in (os.geteuid(), 0):
        raise CacheError(f"{path} belongs to user {status.st_uid}, and this is user {os.geteuid()}: remove it")
    if status.st_mode & 0o022:
        raise CacheError(f"others may write to {path}: chmod go-w {path}")
    if stat.S_ISDIR(status.st_mode):
        for parent in path.resolve().parents:
            mode = os.stat(parent).st_mode
            if mode & 0o002 and not mode & stat.S_ISVTX:
                raise CacheError(f"anybody may exchange {path}, since they may write to {parent}: chmod o-w {parent}")
