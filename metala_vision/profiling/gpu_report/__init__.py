"""One command that tells the truth about a GPU: whether the kernels are right there, and how fast everything is.

`tools/gpu_report.py` calls `report`. The report has parts, each in a process of its own with its share of the time; a
part has cells, and each cell is a row of figures or says why there are none. `conductor.py` starts the processes and
writes the report, `worker.py` is what they run, `parts.py` names the parts; every other file is one part.
"""

from .conductor import Options, report

__all__ = ["Options", "report"]
