"""A learned position embedding at other sizes."""

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from .operators import as_tensors, compiled, is_traced_for_onnx, keeps_sizes_open


def resampled(pos_embed: Tensor, former: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """[1, former rows * cols, C] -> [1, rows * cols, C] of another grid.

    Raises:
        ValueError: in the TorchScript exporter of ONNX, which has no such resampling.
    """
    if not torch.jit.is_scripting() and torch.jit.is_tracing():
        if is_traced_for_onnx():
            raise ValueError(
                "pos_embed: got 'learn', which torch.onnx.export(dynamo=False) cannot resample: write dynamo=True"
            )
        if keeps_sizes_open():
            return compiled(_resampled_to)(pos_embed, former, *as_tensors(grid))
    if not _is_symbolic(grid) and former == grid:
        return pos_embed
    return resample_abs_pos_embed(pos_embed, list(grid), list(former), num_prefix_tokens=0)


def _is_symbolic(grid: tuple[int, int]) -> bool:
    """Whether torch.export keeps the sides open, which a comparison would fix."""
    if torch.jit.is_scripting():
        return False
    return torch.compiler.is_exporting() and not all(type(side) is int for side in grid)


def _resampled_to(pos_embed: Tensor, former: tuple[int, int], rows: Tensor, cols: Tensor) -> Tensor:
    """`resampled` for torch.jit.trace, to which a size is a tensor."""
    return resampled(pos_embed, former, (int(rows), int(cols)))
