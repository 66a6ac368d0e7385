"""The folder of a run: one run's alone, and the same one for all of its processes."""

import contextlib
import errno
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from mmengine.dist import all_gather_object, barrier, broadcast_object_list, is_main_process

from metala_vision.errors import InputError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # what some network disks answer


@contextlib.contextmanager
def held(work_dir: str | Path) -> Iterator[None]:
    """Keeps other runs out of a folder, which is made where there is none; the first of several processes holds it.

    Raises:
        InputError: another run is writing into it, or nobody can.
    """
    if not is_main_process():
        yield
        return
    lock = FileLock(Path(work_dir) / ".lock")
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"--work-dir: another run is writing into {work_dir}; name another folder (or remove {lock.lock_file}, if "
            f"that run was killed on another machine)"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise InputError(
                f"--work-dir: {work_dir} is no folder that can be written: {error.strerror or error}"
            ) from error
        warnings.warn(f"the disk of {work_dir} locks no files: see that no other run writes into it", stacklevel=3)
    try:
        yield
    finally:
        lock.release()


def check_shared(work_dir: str | Path, patience: float = 30.0) -> None:
    """Whether what the first process writes is there for all of them: all read its checkpoints.

    Args:
        work_dir: the folder of the run.
        patience: seconds that a network disk gets to show a new file.

    Raises:
        InputError: in every process, if it is not.
    """
    token = [uuid.uuid4().hex]
    broadcast_object_list(token)
    mark = Path(work_dir) / f".{token[0]}"
    if is_main_process():
        mark.touch()
    barrier()
    end = time.monotonic() + patience
    while not mark.exists() and time.monotonic() < end:
        time.sleep(0.5)
    alone = [rank for rank, seen in enumerate(all_gather_object(mark.exists())) if not seen]
    if is_main_process():
        mark.unlink()
    if alone:
        raise InputError(
            f"--work-dir: what process 0 writes into {work_dir} is not there for process "
            f"{', '.join(map(str, alone))}; it must be on a disk that all nodes share"
        )
