"""Exported files for candidates, each written and checked once."""

from pathlib import Path

from metala_vision.profiling.environment import memory_limit

from .isolated import Ended, stream
from .runtimes import OF_FILES, prepare, reason_against
from .steps import Cell
from .workers import Candidate


class Files:
    """A folder of exported files."""

    def __init__(self, folder: str | Path, patience: float):
        """`patience` are the seconds that one may take to be written."""
        self.folder = str(folder)
        self.patience = patience
        self._ready: set[tuple] = set()

    def reason_against(self, candidate: Candidate, cell: Cell) -> str:
        """Why a candidate has no file for a cell, or cannot run the cell; empty if it can, or needs none.

        The file is written, if it is not there, and run against its model in a process of its own.
        """
        if reason := reason_against(candidate.runtime, cell.dtype):
            return reason
        if candidate.runtime not in OF_FILES:
            return ""
        asked = dict(model=candidate.model, size=cell.size, runtime=candidate.runtime, dtype=cell.dtype)
        if {(*asked.values(),), (*(asked | {"size": None}).values(),)} & self._ready:
            return ""
        try:
            (found,) = stream(prepare, asked | {"folder": self.folder}, self.patience, memory_limit())
        except Ended as ended:
            return ended.reason
        self._ready.add((*(asked | ({"size": None} if found["any_size"] else {})).values(),))
        return ""
