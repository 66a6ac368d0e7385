"""InLine: injective linear attention with a local residual (arXiv 2412.06590)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metala_vision.layers.operators import is_traced_for_onnx, keeps_sizes_open

from .base import TokenMixer
from .registry import register_mixer
from .sums import number_of_tokens


@register_mixer("inline")
class InLine(TokenMixer):
    """Weights q_i . k_j - mean_s(q_i . k_s) + 1/N, which sum to one over the keys j, and a 3x3 neighbourhood of v.

    Subtracting the mean instead of dividing by the sum keeps the length of q: two queries never give the same weights.
    It needs one product k^T v over all tokens, with the keys centred:
    o_i = s q_i (sum_j (k_j - mean k)^T v_j) / N + mean v, s = K^-1/2, K = V = dim / H.
    The neighbourhood has 9 weights for each channel and image, from the mean of the image's tokens, see
    `LocalResidual`. There is no causal form. The arguments are those of `TokenMixer`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        local_conv: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__(dim, num_heads, (dim, dim, dim), False, local_conv, proj_drop, device, dtype)
        self.residual = LocalResidual(dim, num_heads, device=device, dtype=dtype)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] row-major tokens of a (rows, cols) grid -> [B, N, C]."""
        x = self.conv(x, grid)
        q, k, v = self.in_proj(x).split(self.widths, -1)
        o = injective_attention(self.per_head(q), self.per_head(k), self.per_head(v), number_of_tokens(grid)).flatten(2)
        return self.merge(o + self.residual(v, x.mean(1), grid))

    @torch.jit.ignore
    def map_of_values(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `TokenMixer.map_of_values`; the residual has weights of its own for each channel."""
        x = self.conv(x, grid)
        q, k, v = (self.per_head(part) for part in self.in_proj(x).split(self.widths, -1))

        def mixed(values: Tensor) -> Tensor:
            local = self.per_head(self.residual(values.flatten(2), x.mean(1), grid))
            return injective_attention(q, k, values, number_of_tokens(grid)) + local

        return v, mixed


def injective_attention(q: Tensor, k: Tensor, v: Tensor, tokens: float) -> Tensor:
    """The weights of `InLine` on values of N tokens: [B, N, H, K], the same, [B, N, H, V] -> [B, N, H, V]."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    # The factor 1 / (N sqrt(K)) goes half to the keys and half to the values: all of it would vanish in float16.
    root = (tokens * k.shape[3] ** 0.5) ** -0.5
    centred = (k - k.mean(2, keepdim=True)) * root
    o = q @ (centred.transpose(2, 3) @ (v * root)) + v.mean(2, keepdim=True)
    return o.transpose(1, 2)


class LocalResidual(nn.Module):
    """A depthwise 3x3 convolution whose weights are made for each image from the mean of its tokens.

    Two products within the heads make them, with a GELU between: C -> C -> 9 C. Zeros lie beyond the edge.
    """

    def __init__(self, dim: int, num_heads: int, device=None, dtype=None):
        super().__init__()
        self.fc1 = nn.Conv1d(dim, dim, 1, groups=num_heads, device=device, dtype=dtype)
        self.fc2 = nn.Conv1d(dim, 9 * dim, 1, groups=num_heads, device=device, dtype=dtype)

    def forward(self, v: Tensor, mean: Tensor, grid: tuple[int, int]) -> Tensor:
        """Values [B, N, C] row-major on a (rows, cols) grid and mean tokens [B, C] -> [B, N, C]."""
        batch, tokens, dim = v.shape
        weight = self.fc2(F.gelu(self.fc1(mean.unsqueeze(-1))))  # [B, 9 C, 1]
        shifted = False
        if not torch.jit.is_scripting():
            empty = isinstance(batch, int) and batch == 0  # a convolution in no groups is refused
            # As many groups as images: graphs of an open batch cannot say that.
            open_batch = torch.compiler.is_exporting() and not isinstance(batch, int)
            traced = torch.jit.is_tracing() and (is_traced_for_onnx() or keeps_sizes_open())
            shifted = empty or open_batch or traced
        if shifted:
            return neighbourhoods(v, weight.reshape(batch, dim, 3, 3), grid)
        maps = v.transpose(1, 2).reshape(1, batch * dim, grid[0], grid[1])
        maps = F.conv2d(maps, weight.reshape(batch * dim, 1, 3, 3).to(v.dtype), padding=1, groups=batch * dim)
        return maps.reshape(batch, dim, tokens).transpose(1, 2)


def neighbourhoods(v: Tensor, weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """Values [B, N, C] and weights [B, C, 3, 3] -> [B, N, C], shift by shift.

    It is slower than a convolution, but a trace of that would hold the batch, since it is in the number of groups.
    """
    rows, cols = grid
    padded = F.pad(v.unflatten(1, (rows, cols)), (0, 0, 1, 1, 1, 1))
    out = torch.zeros_like(v).unflatten(1, (rows, cols))
    for i in range(3):
        for j in range(3):
            out = out + padded[:, i : i + rows, j : j + cols] * weight[:, None, None, :, i, j]
    return out.flatten(1, 2)
