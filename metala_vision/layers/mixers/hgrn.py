"""HGRN: a gated recurrence for each channel, without a state beyond the token (arXiv 2311.04823)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import ScannedMixer
from .registry import register_mixer

MEMORIES = (1.0, 1000.0)  # tokens, of the channels at first


@register_mixer("hgrn")
class HGRN(ScannedMixer):
    """q = 1, decay = sigmoid(x Wf + b), k = 1 - decay, v = SiLU(x Wc + bc), K = V = 1 with a head for each channel.

    The paper bounds the decay from below, by a bound that grows from block to block; here its bias begins with even
    ratios of memory between the channels, which does that for some channels of every block. `num_heads` are those of
    the norm before the gate. The arguments are those of `ScannedMixer`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        scan: tuple[str, ...] = ("row", "row_reverse"),
        causal: bool = False,
        local_conv: bool = True,
        decay_bias: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__(dim, num_heads, 1, (dim,), scan, causal, local_conv, decay_bias, proj_drop, device, dtype)
        self.value_bias = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))

    @torch.jit.ignore
    def first_decay_bias(self, device=None, dtype=None) -> Tensor:
        """A memory of m tokens is a decay of m / (1 + m), and that is the sigmoid of log(m); [C]."""
        shortest, longest = (math.log(tokens) for tokens in MEMORIES)
        return torch.linspace(shortest, longest, self.value_dim, device=device, dtype=dtype).repeat(self.num_heads)

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialises what is not in a module of its own."""
        super().reset_parameters()
        nn.init.zeros_(self.value_bias)

    def choose(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """See `ScannedMixer.choose`."""
        logits, v, z = self.project(x, grid)
        if self.decay_bias is not None:
            logits = logits + self.decay_bias
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_decay = (F.logsigmoid(logits) * self.decay_scale(grid)).unsqueeze(-1)  # [B, N, C, 1]
        v = F.silu(v + self.value_bias).unsqueeze(-1)
        return torch.ones_like(v), log_decay, None, v, z
