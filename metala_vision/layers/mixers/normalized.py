"""Normalized attention: linear attention whose normaliser is learned from the query's token (DSF, arXiv 2405.15731)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .base import TokenMixer
from .registry import register_mixer
from .sums import number_of_tokens, running_product

OFFSETS = (4.0, 9.0)  # of the log-normaliser of a causal mixer's heads at first: for some 50 to 8000 tokens


@register_mixer("normalized")
class Normalized(TokenMixer):
    """o_i = q_i (sum_j k_j^T v_j) / (sqrt(K) n_i) with n_i = exp(x_i w + b), a scalar of each head; K = V = dim / H.

    Linear attention divides by sum_j q_i . k_j, which is tied to queries and keys and may vanish; this has neither a
    feature map nor that sum. On a grid the sum over the tokens is their mean, so that a model carries over to other
    sizes, and b begins with 0. In a causal mixer it is the sum over the tokens so far, and b begins with 4 to 9. The
    arguments are those of `TokenMixer`.

    log n_i counts as -10 at least, so that a token far from all that were trained on does not outweigh the others.
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
        super().__init__(dim, num_heads, (dim, dim, dim, num_heads), causal, local_conv, proj_drop, device, dtype)
        self.norm_bias = nn.Parameter(torch.empty(num_heads, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialises what is not in a module of its own."""
        with torch.no_grad():
            self.norm_bias.copy_(torch.linspace(*OFFSETS, self.num_heads) if self.causal else torch.zeros(1))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] row-major tokens of a (rows, cols) grid -> [B, N, C]."""
        q, k, v, log_norm = self.project(x, grid)
        o = self._attend(self.per_head(q), self.per_head(k), self.per_head(v), log_norm, grid)
        return self.merge(o.flatten(2).to(v.dtype))

    @torch.jit.ignore
    def map_of_values(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `TokenMixer.map_of_values`."""
        q, k, v, log_norm = self.project(x, grid)
        q, k = self.per_head(q), self.per_head(k)
        return self.per_head(v), lambda values: self._attend(q, k, values, log_norm, grid)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, log_norm: Tensor, grid: tuple[int, int]) -> Tensor:
        """The output [B, N, H, V] in float32 or better: half precision would lose or overflow what 1 / n scales."""
        compute = torch.promote_types(v.dtype, torch.float32)
        factor = torch.exp(-(log_norm.to(compute) + self.norm_bias).clamp(min=-10.0)) * self.value_dim**-0.5
        if self.causal:
            return running_product(q, k, v.to(compute)) * factor.unsqueeze(-1)
        # Half of the mean's 1 / N is in the values and half in the output: all of it would vanish in float16.
        root = number_of_tokens(grid) ** -0.5
        state = k.permute(0, 2, 3, 1) @ (v * root).transpose(1, 2)  # [B, H, K, V]
        return (q.transpose(1, 2) @ state).transpose(1, 2).to(compute) * (factor * root).unsqueeze(-1)
