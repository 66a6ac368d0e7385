"""The two residual branches of a block: each runs as one operator if nobody watches the modules that this skips."""

from typing import TypeGuard

from timm.layers import DropPath
from torch import Tensor, nn

from .decay import decay_scale
from .local_conv import GridConv
from .mixers.metala import MetaLA
from .operators import add_mixer, add_swiglu_mlp, is_traced_for_onnx
from .swiglu import SwiGLU
from .watched import is_plain, is_plain_product


def mixer_branch(x: Tensor, norm: nn.Module, mixer: nn.Module, drop_path: nn.Module, grid: tuple[int, int]) -> Tensor:
    """x + drop_path(mixer(norm(x), grid)), [B, N, C] -> [B, N, C]."""
    if (
        _is_plain_norm(norm)
        and is_plain(mixer, MetaLA)
        and is_plain(mixer.conv, GridConv)
        and is_plain_product(mixer.in_proj)
        and is_plain_product(mixer.out_proj)
        and _is_idle(mixer.proj_drop)
        and _is_idle(drop_path)
        and not is_traced_for_onnx()
        and isinstance(x, Tensor)  # FX's symbols go through the modules, which its users ask for by name
    ):
        return add_mixer(
            x,
            norm.weight,
            norm.bias,
            norm.eps,
            mixer.conv.weight,
            mixer.in_proj.weight,
            mixer.gate_bias,
            mixer.aug_weight,
            mixer.out_proj.weight,
            mixer.num_heads,
            grid,
            mixer.orders,
            decay_scale(grid, mixer.nominal_grid),
            mixer.bias_in(),
        )
    return x + drop_path(mixer(norm(x), grid))


def mlp_branch(
    x: Tensor, norm: nn.Module, mlp: nn.Module, drop_path: nn.Module, grid: tuple[int, int] | None = None
) -> Tensor:
    """x + drop_path(mlp(norm(x))), or mlp(norm(x), grid) for one that looks at neighbours: [B, N, C] -> [B, N, C]."""
    if (
        _is_plain_norm(norm)
        and is_plain(mlp, SwiGLU)
        and (mlp.conv is None or (grid is not None and is_plain(mlp.conv, GridConv)))
        and is_plain_product(mlp.fc1)
        and is_plain_product(mlp.fc2)
        and _is_idle(mlp.drop)
        and _is_idle(drop_path)
        and not is_traced_for_onnx()
        and isinstance(x, Tensor)
    ):
        conv_weight = None if mlp.conv is None else mlp.conv.weight
        weights = mlp.fc1.weight, mlp.fc2.weight, conv_weight
        return add_swiglu_mlp(x, norm.weight, norm.bias, norm.eps, *weights, grid)
    return x + drop_path(mlp(norm(x)) if grid is None else mlp(norm(x), grid))


def _is_plain_norm(norm: nn.Module) -> TypeGuard[nn.LayerNorm]:
    return is_plain(norm, nn.LayerNorm) and norm.bias is not None and len(norm.normalized_shape) == 1


def _is_idle(drop: nn.Module) -> bool:
    """Whether `drop` returns its input unchanged."""
    off = is_plain(drop, nn.Identity) or (is_plain(drop, nn.Dropout) and drop.p == 0.0)
    return off or (not drop.training and (is_plain(drop, nn.Dropout) or is_plain(drop, DropPath)))
