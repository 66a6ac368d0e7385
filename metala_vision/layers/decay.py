"""How far a scan remembers: at first, and on another grid than the one it was trained on.

A gate forgets with every token: a memory that reaches over a whole picture of 10 x 10 tokens reaches over a sixteenth
of a picture of 40 x 40. A factor on the log-decay lets it reach over the same share of a picture on every grid.
"""

import torch
from torch import Tensor

DECAY_SCALES = ("grid", "none")
LOGITS = (-2.0, 4.0)  # at a temperature of 16: memories of 7.5 and of 880 tokens


def decay_scale(grid: tuple[int, int], nominal: tuple[int, int]) -> float:
    """The factor on the log-decay: the number of tokens of the nominal grid over that of this one.

    Other powers of this ratio, and powers of rows and columns apart, gave no lower loss: see docs/tried.md.

    Args:
        grid: rows and columns of the tokens.
        nominal: rows and columns of the grid that the weights were trained on; (0, 0), unknown, gives 1.
    """
    if nominal[0] == 0:
        return 1.0
    tokens = 1.0 * grid[0] * grid[1]  # a float, since ONNX does not have torch.export's division of integers
    return nominal[0] * nominal[1] / tokens


def spread_logits(key_dim: int, num_heads: int, device=None, dtype=None) -> Tensor:
    """The first bias of a decay: the channels of a head remember from a few tokens to a whole picture, [H K].

    A channel with the logit x forgets in 16 / log(1 + exp(-x)) tokens. Even steps of the logit give lengths that grow
    by nearly even ratios. Without a bias all channels begin at 23 tokens.
    """
    return torch.linspace(*LOGITS, key_dim, device=device, dtype=dtype).repeat(num_heads)
