"""How far a scan remembers on another grid than the one it was trained on.

A gate forgets by tokens: what it has learned on 10 x 10 tokens reaches over a sixteenth of the picture on 40 x 40. A
factor on the log-decay lets it reach over the same share of the picture on every grid.
"""

from typing import Any

import torch
from torch import Tensor

DECAY_SCALES = ("grid", "none")


def decay_scale(grid: tuple[int, int], nominal: tuple[int, int]) -> float:
    """What the log-decay is multiplied by: the tokens of the nominal grid over those of this one, at most 1.

    Other exponents of rows and columns, and of them apart, were measured and lost: see the page on what was tried.

    Args:
        grid: rows and columns of the tokens.
        nominal: of the grid that the weights were trained on; (0, 0) is unknown, and scales by 1.
    """
    if nominal[0] == 0:
        return 1.0
    known = nominal[0] * nominal[1]
    if torch.jit.is_scripting():
        return known / max(grid[0] * grid[1], known)
    tokens: Any = grid[0] * grid[1]  # compilers and tracers hand in integers of their own
    tokens = tokens.clamp(min=known) if isinstance(tokens, Tensor) else torch.sym_max(tokens, known)
    if isinstance(tokens, torch.SymInt):  # torch.export, whose division of integers ONNX has not
        tokens = torch.sym_float(tokens)
    return known / tokens
