"""Rotary position embedding (arXiv 2104.09864) by rows and columns of a grid, or by the places of a sequence."""

import torch
from torch import Tensor


def rotated(x: Tensor, grid: tuple[int, int], width: int, causal: bool = False) -> Tensor:
    """Rotates pairs of channels by angles that grow with the place of a token; products depend on distances alone.

    Half of the channels turn with the row and half with the column; in a causal mixer all turn with the place. The
    first channel of a pair stands in the first half of its share, the second in the second half. Channels that are
    left over, up to three, stay.

    Args:
        x: [B, N, H, K], row-major tokens.
        grid: (rows, cols).
        width: K, which a tracer would not tell as a number.
        causal: the tokens are a sequence.

    Returns:
        [B, N, H, K] in the dtype of `x`.
    """
    rows, cols = grid
    dtype = torch.promote_types(x.dtype, torch.float32)
    if causal:
        angles = [_angles(rows * cols, width // 2, 10_000.0, x, dtype)]
    else:
        pairs = width // 4
        base = 100.0  # sides of a grid are tens of tokens
        by_row = _angles(rows, pairs, base, x, dtype).unsqueeze(1).expand(rows, cols, pairs)
        by_column = _angles(cols, pairs, base, x, dtype).unsqueeze(0).expand(rows, cols, pairs)
        angles = [by_row.reshape(rows * cols, pairs), by_column.reshape(rows * cols, pairs)]
    parts: list[Tensor] = []
    start, pairs = 0, width // 2 // len(angles)
    for angle in angles:
        cos, sin = angle.cos().unsqueeze(1), angle.sin().unsqueeze(1)  # [N, 1, pairs], the same for all heads
        first, second = x[..., start : start + pairs], x[..., start + pairs : start + 2 * pairs]
        parts += [first * cos - second * sin, first * sin + second * cos]
        start += 2 * pairs
    parts.append(x[..., start:])
    return torch.cat(parts, dim=-1).to(x.dtype)


def _angles(places: int, pairs: int, base: float, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Place times frequency, [places, pairs]; the frequencies fall from 1 by even ratios towards 1 / base."""
    frequencies = base ** (-torch.arange(pairs, device=like.device, dtype=dtype) / max(pairs, 1))
    return torch.arange(places, device=like.device, dtype=dtype).unsqueeze(1) * frequencies
