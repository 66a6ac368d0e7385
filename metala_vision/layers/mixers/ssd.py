"""SSD, the state space of Mamba-2: one decay and one step for each head (arXiv 2405.21060)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metala_vision.layers.operators import attention

from .base import ScannedMixer
from .registry import register_mixer

STEPS = (1e-3, 1e-1)  # of the heads at first, as in the paper: memories of 1000 to 10 tokens


@register_mixer("ssd")
class SSD(ScannedMixer):
    """q = x Wc and k = step x Wb for all heads together, v = x Wv, decay = exp(-a step), K = dim / 2 / H.

    step = softplus(x Ws + b) and a > 0 are scalars of a head. v reaches the output also directly, times a weight of
    each head that begins with 1. On a larger grid the step is smaller, which scales decay and key together. The
    paper's norm, an RMSNorm behind the gate, is our LayerNorm before it, see `ScannedMixer`, as are the arguments; the
    bias of the step is always there.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        scan: tuple[str, ...] = ("row", "row_reverse"),
        causal: bool = False,
        local_conv: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        key_dim = dim // 2 // max(num_heads, 1)
        settings = scan, causal, local_conv, True, proj_drop, device, dtype
        super().__init__(dim, num_heads, key_dim, (key_dim, key_dim, num_heads), *settings)
        self.log_rate = nn.Parameter(torch.zeros(num_heads, device=device, dtype=dtype))
        self.skip = nn.Parameter(torch.ones(num_heads, device=device, dtype=dtype))

    @torch.jit.ignore
    def first_decay_bias(self, device=None, dtype=None) -> Tensor:
        """The bias of the steps: even ratios between the heads, [H]."""
        shortest, longest = (math.log(step) for step in STEPS)
        steps = torch.linspace(shortest, longest, self.num_heads, device=device, dtype=torch.float64).exp()
        return (steps + torch.log(-torch.expm1(-steps))).to(dtype or torch.get_default_dtype())  # softplus inverted

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialises what is not in a module of its own."""
        super().reset_parameters()
        nn.init.zeros_(self.log_rate)
        nn.init.ones_(self.skip)

    def choose(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """See `ScannedMixer.choose`."""
        q, k, step, v, z = self.project(x, grid)
        step = step.to(torch.promote_types(step.dtype, torch.float32))
        bias = self.decay_bias
        assert bias is not None
        step = F.softplus(step + bias).unsqueeze(-1) * self.decay_scale(grid)  # [B, N, H, 1]
        shape = [q.shape[0], q.shape[1], self.num_heads, self.key_dim]
        log_decay = (-self.log_rate.exp().unsqueeze(-1) * step).expand(shape)
        return q.unsqueeze(2).expand(shape), log_decay, k.unsqueeze(2) * step, self.per_head(v), z

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] row-major tokens of a (rows, cols) grid -> [B, N, C]."""
        q, log_decay, k, v, z = self.choose(x, grid)
        return self.gated(attention(q, log_decay, k, v, grid, self.orders) + self.skip.unsqueeze(-1) * v, z)

    @torch.jit.ignore
    def map_of_values(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `TokenMixer.map_of_values`."""
        v, scanned = super().map_of_values(x, grid)
        return v, lambda values: scanned(values) + self.skip.unsqueeze(-1) * values
