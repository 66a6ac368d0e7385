"""The folder of a run: no other run writes into it, and all processes of the run see the same folder."""

import contextlib
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from mmengine.dist import all_gather_object, barrier, broadcast_object_list, is_main_process

from metala_vision.errors import InputError
from metala_vision.files import owned


@contextlib.contextmanager
def held(work_dir: str | Path) -> Iterator[None]:
    """Keeps other runs out of a folder; the first of several processes holds it.

    Raises:
        InputError: another run is writing into it, or nobody can write there.
    """
    if not is_main_process():
        yield
        return
    with owned(work_dir, "--work-dir", "another run is writing"):
        yield


def check_shared(work_dir: str | Path, patience: float = 30.0) -> None:
    """Checks that all processes see what the first one writes, since all read its checkpoints.

    Args:
        work_dir: the folder of the run.
        patience: seconds that a network disk gets to show a new file.

    Raises:
        InputError: some process does not see it; all processes raise this.
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
