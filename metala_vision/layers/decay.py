"""How far a scan remembers on another grid than the one it was trained on.

A gate forgets by tokens: what it has learned on 10 x 10 tokens reaches over a quarter as many rows of a grid four times
as wide. `decay_scale` multiplies the log-decay so that it reaches over as many rows, or columns, as before.
"""

import torch

DECAY_SCALES = ("grid", "none")


def decay_scale(grid: tuple[int, int], nominal: tuple[int, int], axis: str) -> float:
    """What the log-decay of a scan is multiplied by: 1 on the nominal grid, and where `nominal` is (0, 0).

    Args:
        grid: rows and columns of the tokens.
        nominal: of the grid that the weights were trained on.
        axis: "row" or "column", along which the scan runs, or "both".
    """
    if nominal[0] == 0:
        return 1.0
    rows, cols = grid
    if not torch.jit.is_scripting() and isinstance(rows, torch.SymInt):  # ONNX has no division of its integers
        rows = torch.sym_float(rows)
    if not torch.jit.is_scripting() and isinstance(cols, torch.SymInt):
        cols = torch.sym_float(cols)
    if axis == "row":
        return nominal[1] / cols
    if axis == "column":
        return nominal[0] / rows
    return (nominal[0] * nominal[1] / (rows * cols)) ** 0.5


def axis_of(scan: tuple[str, ...]) -> str:
    """Along which axis the orders of a scan run."""
    axes = {order.removesuffix("_reverse") for order in scan}
    return axes.pop() if len(axes) == 1 else "both"
