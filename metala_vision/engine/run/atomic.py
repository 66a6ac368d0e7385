"""mmengine's file backend for files that are either whole or not there."""

from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from metala_vision.files import write_atomic


@register_backend("atomic", force=True)
class AtomicBackend(LocalBackend):
    """mmengine's local files, written atomically: `backend_args=dict(backend="atomic")`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomic(filepath, obj)
