"""The scan orders of the blocks of a model."""

from metala_vision.kernels import SCAN_ORDERS
from metala_vision.layers.mixers.base import is_scan

ROWS = ("row", "row_reverse")
COLUMNS = ("column", "column_reverse")
# The orders of successive blocks by name, repeated over the depth.
SCANS: dict[str, tuple[tuple[str, ...], ...]] = {
    "cycle": (("row",), ("column",), ("row_reverse",), ("column_reverse",)),
    "alternate": (ROWS, COLUMNS),
    "cross": (ROWS + COLUMNS,),
    "row": (ROWS,),
    "causal": (("row",),),
}


def orders_of_blocks(scan: str | tuple[str, ...] | list[str], depth: int) -> list[tuple[str, ...]]:
    """The orders of each of `depth` blocks.

    Args:
        scan: a name out of `SCANS`, or the orders of every block, as `gated_linear_attention` takes them.
        depth: number of blocks.

    Raises:
        ValueError: `scan` is neither.
    """
    if isinstance(scan, str) and scan in SCANS:
        cycle = SCANS[scan]
    elif is_scan(scan):
        cycle = (tuple(scan),)
    else:
        raise ValueError(
            f"scan: got {scan!r}, expected one of {tuple(SCANS)}, or the orders of every block, a non-empty tuple out"
            f" of {SCAN_ORDERS}, none twice"
        )
    return [cycle[i % len(cycle)] for i in range(depth)]
