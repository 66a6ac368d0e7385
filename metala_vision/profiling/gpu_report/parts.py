"""What a report is made of: parts, most important first, and the cells that each consists of."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

KEPT = "kept.json"  # in a part's scratch folder: rows of an earlier run of the report, by the keys of their cells


class Job(NamedTuple):
    """What the cells of a part are told."""

    device: str  # "cuda", or "cpu" in a rehearsal
    rehearse: bool  # tiny sizes, on a machine without a GPU
    deadline: float  # by time.monotonic(): no cell is begun after it
    scratch: Path  # a folder for files that nobody keeps
    ceilings: dict  # what the first part measured: "copy_gb_s" and "product_tflop_s"

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


class Cell(NamedTuple):
    """One row of a part."""

    key: str  # its name, unique in the part
    run: Callable[[], dict]  # plain values; "status" may be among them, and is "ok" where it is not


class Part(NamedTuple):
    """A part of the report."""

    name: str
    title: str
    seconds: float  # its share of nine minutes; time that others leave is shared in proportion
    source: str  # "module:function", a function of a Job that gives the part's cells
    interpreted: bool = False  # whether a rehearsal needs Triton's interpreter
    beside: str = ""  # like `source`: cells that run meanwhile to fill caches, whose rows nobody keeps


_HERE = __package__
PARTS = (
    Part("environment", "Card, versions, ceilings", 25, f"{_HERE}.ceilings:cells"),
    Part(
        "correctness", "Tests of the kernels", 170, f"{_HERE}.correctness:cells", True, f"{_HERE}.models:compilations"
    ),
    Part("operators", "Operator and fused mixer", 90, f"{_HERE}.operators:cells", True),
    Part("models", "Whole models", 170, f"{_HERE}.models:cells"),
    Part("training", "Training", 55, f"{_HERE}.training:cells"),
    Part("hotspots", "Where the time goes", 25, f"{_HERE}.hotspots:cells"),
)
