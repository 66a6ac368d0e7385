"""The operators of `metala_vision.kernels` in operators of PyTorch's own, for programs that run without Python.

Each function has the arguments of the operator that it stands for, see `kernels.ops` and `kernels.unfused`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from metala_vision.kernels import unfused
from metala_vision.kernels.reference import NORM_EPS, clamp_log_decay

from . import torch_scan
from .torch_scan import chunked_scan, heads_first, scan_in_graph


class PlainOperators(TorchFunctionMode):
    """A context in which models call operators of PyTorch in the place of ours, for AOTInductor to compile them."""

    def __init__(self) -> None:
        super().__init__()
        metala = torch.ops.metala
        self.plain: dict[Any, Callable] = {
            metala.gated_linear_attention: gated_linear_attention,
            metala.mixer: mixer,
            metala.add_mixer: add_mixer,
            metala.conv_silu: conv_silu,
            metala.conv_swiglu: conv_swiglu,
            metala.patches: unfused.patches,
            metala.swiglu: unfused.swiglu,
            metala.swiglu_mlp: swiglu_mlp,
            metala.add_swiglu_mlp: add_swiglu_mlp,
            torch.conv2d: conv2d,
        }

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Called by torch in the place of each of its functions."""
        packet = getattr(func, "overloadpacket", func)
        return self.plain.get(packet, func)(*args, **(kwargs or {}))


def gated_linear_attention(
    q: Tensor,
    log_decay: Tensor,
    v: Tensor,
    k: Tensor | None,
    rows: int,
    cols: int,
    scan: str,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """See `kernels.ops.gated_linear_attention`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return unfused.attention(scan_in_graph, q, log_decay, v, k, (rows, cols), tuple(scan.split(",")), scale)


def mixer(
    projected: Tensor,
    gate_bias: Tensor,
    aug_weight: Tensor,
    num_heads: int,
    rows: int,
    cols: int,
    scan: str,
    backend: str | None = None,
    decay_scale: float = 1.0,
) -> Tensor:
    """See `kernels.ops.mixer`."""
    orders = tuple(scan.split(","))
    return unfused.mixer(scan_in_graph, projected, gate_bias, aug_weight, num_heads, (rows, cols), orders, decay_scale)


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
    rows: int,
    cols: int,
    scan: str,
    decay_scale: float = 1.0,
    bias_in: Tensor | None = None,
) -> Tensor:
    """See `kernels.ops.add_mixer`. A single scan takes all that happens to the tokens in its own sequence."""
    h = conv_silu(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), conv_weight, rows, cols)
    if "," in scan:
        projected = F.linear(h, weight_in, bias_in)
        mixed = mixer(projected, gate_bias, aug_weight, num_heads, rows, cols, scan, None, decay_scale)
        return x + F.linear(mixed, weight_out)
    sequence = torch_scan.Sequence(rows, cols, scan, x.device)
    projected = F.linear(sequence.split(h), weight_in, bias_in)
    mixed = _mixed(projected, gate_bias, aug_weight, num_heads, decay_scale)
    return x + sequence.join(F.linear(mixed, weight_out))


def _mixed(projected: Tensor, gate_bias: Tensor, aug_weight: Tensor, num_heads: int, decay_scale: float) -> Tensor:
    """`kernels.unfused.mixer` in the chunks of one scan, [B, M, T, 3 C] -> [B, M, T, C]."""
    dim = gate_bias.shape[0]
    compute = torch.promote_types(projected.dtype, torch.float32)
    parts = projected.to(compute).split([dim // 2, dim // 2, dim, dim], dim=-1)
    q, logits, v = (heads_first(part, num_heads) for part in parts[:3])
    log_decay = clamp_log_decay(unfused.gate_log_decay(logits, decay_scale))
    k = unfused.key_of(log_decay)
    o = q.shape[-1] ** -0.5 * chunked_scan(q, log_decay, k, v)
    weight = aug_weight.to(compute).view(num_heads, 1, 1, -1)
    o = o + 0.5 * torch.tanh(0.5 * (q * (weight * k)).sum(-1, keepdim=True) * v)
    o = F.layer_norm(o, o.shape[-1:], eps=NORM_EPS).permute(0, 2, 3, 1, 4).flatten(3)
    return (F.silu(parts[3] + gate_bias.to(compute)) * o).to(projected.dtype)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int | str = 0,
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
) -> Tensor:
    """See torch.conv2d; one of whole patches is a product.

    Of a convolution over an image whose sides are symbols of their own AOTInductor takes the result for one with
    another order of axes in memory (torch 2.14).
    """
    height, width = weight.shape[2:]
    strides = (stride, stride) if isinstance(stride, int) else tuple(stride)
    plain = padding in (0, (0, 0), "valid") and dilation in (1, (1, 1)) and groups == 1
    whole = statically_known_true(x.shape[-2] % height == 0) and statically_known_true(x.shape[-1] % width == 0)
    if not plain or not whole or strides != (height, width) or height * width == 1:
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return F.linear(unfused.patches(x, height, width), weight.flatten(1), bias).permute(0, 3, 1, 2)


def conv_silu(x: Tensor, weight: Tensor, rows: int, cols: int) -> Tensor:
    """See `kernels.unfused.conv_silu`; nine products, see `conv2d`, which a compiler fuses with what is around them."""
    image = F.pad(x.unflatten(1, (rows, cols)), (0, 0, 1, 1, 1, 1))
    taps = weight.flatten(2).unbind(2)
    terms = [image[:, i // 3 : i // 3 + rows, i % 3 : i % 3 + cols] * taps[i].squeeze(1) for i in range(9)]
    return F.silu(sum(terms[1:], terms[0])).flatten(1, 2)


def conv_swiglu(x: Tensor, weight: Tensor, rows: int, cols: int) -> Tensor:
    """See `kernels.unfused.conv_swiglu`."""
    gate, value = x.chunk(2, dim=-1)
    return conv_silu(gate, weight, rows, cols) * value


def swiglu_mlp(x: Tensor, weight_in: Tensor, weight_out: Tensor) -> Tensor:
    """See `kernels.ops.swiglu_mlp`."""
    return F.linear(unfused.swiglu(F.linear(x, weight_in)), weight_out)


def add_swiglu_mlp(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight_in: Tensor,
    weight_out: Tensor,
    conv_weight: Tensor | None = None,
    rows: int = 0,
    cols: int = 0,
) -> Tensor:
    """See `kernels.ops.add_swiglu_mlp`."""
    normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    if conv_weight is None:
        return x + swiglu_mlp(normed, weight_in, weight_out)
    return x + F.linear(conv_swiglu(F.linear(normed, weight_in), conv_weight, rows, cols), weight_out)
