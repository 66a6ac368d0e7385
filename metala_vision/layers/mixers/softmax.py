"""Softmax attention, the mixer that the linear ones stand in for."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import TokenMixer
from .registry import register_mixer


@register_mixer("softmax")
class Softmax(TokenMixer):
    """softmax(q k^T / sqrt(K)) v with K = V = dim / H, by PyTorch's fused attention; its time is quadratic in N.

    The arguments are those of `TokenMixer`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        causal: bool = False,
        local_conv: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__(dim, num_heads, (dim, dim, dim), causal, local_conv, proj_drop, device, dtype)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] row-major tokens of a (rows, cols) grid -> [B, N, C]."""
        q, k, v = self.project(x, grid)
        return self.merge(self._attend(self.per_head(q), self.per_head(k), self.per_head(v)).flatten(2))

    @torch.jit.ignore
    def map_of_values(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `TokenMixer.map_of_values`."""
        q, k, v = (self.per_head(part) for part in self.project(x, grid))
        return v, lambda values: self._attend(q, k, values)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2)
