"""The user's cache folder, and whether its files may be trusted, to be loaded as code or trained on."""

import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO


class CacheError(OSError):
    """There is no cache folder, or one that somebody else could have written to; the message says why."""


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/metala_vision, by default ~/.cache/metala_vision.

    Raises:
        CacheError: HOME is a relative path, or the user has no home, as in containers that run under a mere number.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(root):  # the XDG specification says to ignore a relative path
        return Path(root) / "metala_vision"
    advice = "set XDG_CACHE_HOME to a folder that is theirs alone"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise CacheError(f"this user has no home: {advice}") from error
    if not home.is_absolute():
        raise CacheError(f"HOME is {str(home)!r}, which depends on the current folder: {advice}")
    return home / ".cache" / "metala_vision"


def make_private(folder: Path) -> None:
    """Makes a folder and its missing parents for this user alone, whatever the umask, and checks that it is trusted.

    Raises:
        CacheError: see `check_trusted`.
    """
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            if path.is_symlink():
                raise CacheError(f"{path} is a link that leads nowhere: remove it")
            path.mkdir(mode=0o700, exist_ok=True)
    check_trusted(folder)


def check_trusted(folder: Path) -> None:
    """Checks that nobody but this user and root may write to a folder, or to the folder that a link leads to.

    Raises:
        CacheError: somebody else may; the message names the folder and what to do.
        FileNotFoundError: it is not there.
    """
    if not hasattr(os, "geteuid"):  # Windows: the profile's folders are its user's
        return
    path = Path(os.path.realpath(folder, strict=True))
    status, user = os.stat(path), os.geteuid()
    if not stat.S_ISDIR(status.st_mode):
        raise CacheError(f"{path} is no folder: remove it")
    _check(path, status, f"chown {user} {path}, or set XDG_CACHE_HOME to a folder of this user's own")
    for parent in path.parents:
        mode = os.stat(parent).st_mode
        if mode & 0o002 and not mode & stat.S_ISVTX:  # in a sticky folder only the owner of a file can move it
            raise CacheError(f"anybody may exchange {path}, since they may write to {parent}: chmod o-w {parent}")


def open_trusted(path: Path) -> BinaryIO:
    """Opens a file that nobody but this user and root could have written.

    The check comes after opening, so that nobody can exchange the file in between.

    Raises:
        CacheError: somebody else could have written it, or it is a link; the message names the file and what to do.
        FileNotFoundError: it is not there.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if path.is_symlink():
            raise CacheError(f"{path} is a link: remove it") from error
        raise
    try:
        if hasattr(os, "geteuid"):
            _check(path, os.fstat(descriptor), "remove it")
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def write_private(path: Path, content: bytes) -> None:
    """Writes a file for this user alone, whatever the umask, whole or not at all."""
    descriptor, partial = tempfile.mkstemp(prefix=path.stem, suffix=".tmp", dir=path.parent)  # an unpredictable name
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def _check(path: Path, status: os.stat_result, advice: str) -> None:
    """Checks owner and permissions; `advice` is what to do where `path` belongs to somebody else."""
    if status.st_uid not in (os.geteuid(), 0):
        raise CacheError(f"{path} belongs to user {status.st_uid}, and this is user {os.geteuid()}: {advice}")
    if status.st_mode & 0o022:
        raise CacheError(f"others may write to {path}: chmod go-w {path}")
