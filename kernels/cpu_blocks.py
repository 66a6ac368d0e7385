"""The two halves of a block in inference on a CPU: C kernels and matrix products, through memory that is kept.

Shapes: B batch, N tokens (rows * cols, row-major), C channels, D hidden channels of an MLP.
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from .cpu import mixer_into
from .cpu_calls import SCRATCH_BYTES, scratch
from .cpu_tokens import conv_silu_into, conv_swiglu_into, swiglu_into
from .linear import linear

MLP_TILE = 1024  # tokens that go through an MLP at a time: fewer starve the products, more leave the cache
BAND_BYTES = 64 << 20  # hidden channels that an MLP keeps for its second product
MAPPED_BYTES = 32 << 20  # from here on glibc's malloc takes fresh pages from the system in every call


def mlp_tile(tokens: int) -> int:
    """Tokens of a tile of `swiglu_mlp`; the last tile of all may have fewer."""
    tiles = max(1, round(tokens / MLP_TILE))
    return max(1, -(-tokens // tiles))


def swiglu_mlp(
    x: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    conv_weight: Tensor | None = None,
    grid: tuple[int, int] = (0, 0),
) -> Tensor:
    """swiglu(x weight_in^T) weight_out^T, [..., C] -> [..., C'], in tiles of tokens.

    With a norm, the MLP takes LayerNorm(x) and its result is added to x, whose dtype may then differ from that of the
    weights. With `conv_weight`, `conv_swiglu` stands in the place of swiglu, and a tile is whole images of `grid`.

    The hidden channels of one tile stay in the cache until the activation has read them. No allocation is so large that
    the system hands out and takes back its pages in every call: at 16384 tokens that would cost a quarter of the whole
    model's time. The second product takes the tiles of a band at once, since it cannot write into a part of the result.
    """
    tokens = x.reshape(-1, x.shape[-1])
    count, width = tokens.shape[0], weight_out.shape[1]
    image = grid[0] * grid[1]
    size = mlp_tile(count) if conv_weight is None else image * max(1, round(MLP_TILE / image))
    band = size * max(1, BAND_BYTES // max(1, size * width * weight_in.element_size()))
    hidden = scratch("hidden", min(band, count) * width, weight_in.dtype).view(-1, width)
    results = []

    def project(tile: Tensor) -> Tensor:
        if norm_weight is not None:
            tile = F.layer_norm(tile, tile.shape[1:], norm_weight, norm_bias, eps).to(weight_in.dtype)
        return linear(tile, weight_in)

    for start in range(0, max(count, 1), band):
        residual = tokens[start : start + band]
        for begin in range(0, residual.shape[0], size):
            tile = residual[begin : begin + size]
            to = hidden[begin : begin + tile.shape[0]]
            if conv_weight is None:
                swiglu_into(project(tile), to)
            else:
                _project_and_convolve(tile, project, conv_weight, grid, to)
        inner = hidden[: residual.shape[0]]
        results.append(linear(inner, weight_out) if norm_weight is None else _add(residual, inner, weight_out))
    out = results[0] if len(results) == 1 else torch.cat(results)
    return out.view(*x.shape[:-1], weight_out.shape[0])


def _project_and_convolve(
    tokens: Tensor, project: Callable[[Tensor], Tensor], weight: Tensor, grid: tuple[int, int], out: Tensor
) -> None:
    """Writes conv_swiglu(project(tokens)) of whole images to `out`, of one large image in bands of its rows.

    A convolution at the end of a band waits for the first row of the next, and two rows before that are kept for it.
    """
    rows, cols = grid
    band = max(2, MLP_TILE // cols)
    if tokens.shape[0] > rows * cols or 2 * rows <= 3 * band:  # as large as the largest tile without a convolution
        projected = project(tokens)
        conv_swiglu_into(projected.view(-1, rows * cols, projected.shape[1]), weight, grid, out)
        return
    above = None
    for first in range(0, rows, band):
        last = min(first + band, rows)
        projected = project(tokens[first * cols : last * cols])
        top = first
        if above is not None:
            projected, top = torch.cat((above, projected)), first - 2
        above = projected[-2 * cols :]
        ready = max(0, first - 1), last - (last < rows)
        within = ready[0] - top, ready[1] - top
        conv_swiglu_into(projected[None], weight, (last - top, cols), out[ready[0] * cols : ready[1] * cols], within)


def add_mixer(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    conv_weight: Tensor,
    weight_in: Tensor,
    gate_bias: Tensor,
    aug_weight: Tensor,
    weight_out: Tensor,
    num_heads: int,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    decay_scale: float = 1.0,
    bias_in: Tensor | None = None,
) -> Tensor:
    """x + mixer(conv_silu(LayerNorm(x)) weight_in^T + bias_in) weight_out^T, [B, N, C] -> [B, N, C], dtype of `x`.

    What lies in between is computed in the dtype of the weights.
    """
    dtype = weight_in.dtype
    batch, tokens, dim = x.shape
    # It holds the output of the convolution, and later that of the mixer.
    inner = scratch("inner", batch * tokens * dim, dtype).view(x.shape)
    conv_silu_into(x, conv_weight, grid, inner, (norm_weight, norm_bias), eps)
    projected = _projected(inner, weight_in, bias_in)
    mixer_into(projected, gate_bias, aug_weight, num_heads, grid, scan, inner, decay_scale=decay_scale)
    return _add(x, inner, weight_out)


def _projected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias, [B, N, C] -> [B, N, C']; torch writes it to kept memory where fresh pages cost more time."""
    shape = (*x.shape[:-1], weight.shape[0])
    size = prod(shape)
    if not MAPPED_BYTES <= size * x.element_size() <= SCRATCH_BYTES:
        return linear(x, weight, bias=bias)
    out = scratch("projected", size, x.dtype).view(shape)
    if bias is None:
        torch.mm(x.flatten(0, 1), weight.t(), out=out.flatten(0, 1))
    else:
        torch.addmm(bias, x.flatten(0, 1), weight.t(), out=out.flatten(0, 1))
    return out


def _add(residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """residual + x weight^T, in the dtype of the residual."""
    if x.dtype == residual.dtype:
        return linear(x, weight, residual)
    return residual.contiguous() + linear(x, weight)
