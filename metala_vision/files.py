"""Files that are whole or not there, whatever happens in the middle of a write, and folders that one process owns."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import InputError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # what some network disks answer


def write_atomic(path: str | Path, data: bytes) -> None:
    """Writes beside `path` and renames, so that `path` is always the former or the new file, whole.

    Raises:
        OSError: the write failed (a full disk, say); `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*.tmp"):  # left by a process that was killed
        stale.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def owned(folder: str | Path, option: str, other: str) -> Iterator[None]:
    """Keeps other processes out of a folder, and makes it if it is missing; an owner that was killed keeps nobody out.

    Args:
        folder: the folder, in which a hidden file is locked. On a disk that cannot lock files there is only a warning.
        option: the option by which the user has named it.
        other: what another owner is doing, such as "another run is writing".

    Raises:
        InputError: there is another owner, or the folder cannot be written.
    """
    lock = FileLock(Path(folder) / ".lock")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{option}: {other} into {folder}; name another folder (or remove {lock.lock_file}, if that was killed on "
            f"another machine)"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise InputError(
                f"{option}: {folder} is no folder that can be written: {error.strerror or error}"
            ) from error
        warnings.warn(f"the disk of {folder} locks no files: see that nothing else writes into it", stacklevel=3)
    try:
        yield
    finally:
        lock.release()


def write_json(path: str | Path, value: object) -> None:
    """`value` as indented JSON, atomically; numbers that are not finite become null."""
    write_atomic(path, (json.dumps(_finite(value), indent=2) + "\n").encode())


def to_csv(rows: Sequence[dict]) -> bytes:
    """Rows as a table with the columns of all rows; None is an empty cell."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def to_json(value: object) -> str:
    """`value` as one line of JSON; numbers that are not finite become null."""
    return json.dumps(_finite(value))


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
