"""What the operators cost, for fvcore and for torch's FlopCounterMode.

The unit is the multiply-accumulate (fvcore's); FlopCounterMode gets twice that. A scan counts as its recurrence: per
token, head and order 3 K V to decay, update and read a state [K, V], and per token and head K + V for the token's own
term. `chunkwise_scan_macs` counts what the chunkwise form computes instead. Matrix products and convolutions count as
fvcore counts them. Element-wise work (SiLU, gates, norms) counts nothing, but for the LayerNorms in `fvcore_handles`.
"""

from collections.abc import Callable
from math import prod

import torch
from torch.utils.flop_counter import register_flop_formula

from . import library  # noqa: F401  (registers the operators)
from .chunked import CHUNK

# Decay and update of the state, decay and update of the state's gradient, and a product each for dq, dk and dv.
_BACKWARD_PER_STATE = 7


def scan_macs(q: tuple[int, ...], v: tuple[int, ...], orders: int) -> int:
    """Gated linear attention on q [B, N, H, K] and v [B, N, H, V]."""
    return prod(q[:3]) * (3 * orders * q[3] * v[3] + q[3] + v[3])


def chunkwise_scan_macs(q: tuple[int, ...], v: tuple[int, ...], orders: int, chunk: int = CHUNK) -> int:
    """The same scan in chunks of T tokens, as on matrix units: whole tiles, the last chunk padded.

    Each order and chunk takes T^2 K for the scores, T^2 V to sum the values, T K V to read the state, T K V to update
    it and K V to decay it. The tokens' own terms come once on top.
    """
    batch, tokens, heads, key = q
    value, chunks = v[3], -(-tokens // chunk)
    per_chunk = chunk * chunk * (key + value) + 2 * chunk * key * value + key * value
    return batch * heads * (orders * chunks * per_chunk + tokens * (key + value))


# How a scan is counted, by name.
SCAN_FORMS: dict[str, Callable[..., int]] = {"recurrent": scan_macs, "chunkwise": chunkwise_scan_macs}


def mixer_macs(projected: tuple[int, ...], num_heads: int, orders: int, form: str = "recurrent") -> int:
    """The scan of a MetaLA layer and its self-augmentation, q . (w k) v; projected is [B, N, 3 C]."""
    batch, tokens, width = projected
    key, value = width // 6 // num_heads, width // 3 // num_heads
    shape = (batch, tokens, num_heads)
    return SCAN_FORMS[form]((*shape, key), (*shape, value), orders) + prod(shape) * (2 * key + value)


def conv_macs(x: tuple[int, ...]) -> int:
    """Depthwise 3x3 convolution of [B, N, C]."""
    return 9 * prod(x)


def mlp_macs(
    x: tuple[int, ...], weight_in: tuple[int, ...], weight_out: tuple[int, ...], conv_weight: tuple[int, ...] = (0,)
) -> int:
    """The two products of a SwiGLU MLP on [..., C], and the convolution in its gate."""
    return prod(x[:-1]) * (prod(weight_in) + prod(weight_out) + prod(conv_weight))


def half_block_macs(x: tuple[int, ...], num_heads: int, orders: int, form: str = "recurrent") -> int:
    """The mixer of a block on [B, N, C], with its convolution and its two projections."""
    dim = x[2]
    return conv_macs(x) + 4 * prod(x) * dim + mixer_macs((x[0], x[1], 3 * dim), num_heads, orders, form)


def _orders(scan: str) -> int:
    return scan.count(",") + 1


# --- torch.utils.flop_counter.FlopCounterMode: it passes the operators' arguments, with shapes in place of tensors

_ops = torch.ops.metala


@register_flop_formula(_ops.scan_forward)
def _(q, log_decay, v, k, rows, cols, scan, scale, *, out_shape=None, **kwargs) -> int:
    return 2 * scan_macs(q, v, _orders(scan))


@register_flop_formula(_ops.scan_backward)
def _(dout, q, log_decay, v, k, rows, cols, scan, scale, *, out_shape=None, **kwargs) -> int:
    return 2 * prod(q[:3]) * (_BACKWARD_PER_STATE * _orders(scan) * q[3] * v[3] + 2 * (q[3] + v[3]))


@register_flop_formula(_ops.mixer_forward)
def _(projected, bias, weight, num_heads, rows, cols, scan, decay_scale, keep, *, out_shape=None, **kwargs) -> int:
    return 2 * mixer_macs(projected, num_heads, _orders(scan))


@register_flop_formula(_ops.mixer_backward)
def _(dy, o, projected, bias, weight, num_heads, rows, cols, scan, decay_scale, *, out_shape=None, **kwargs) -> int:
    key, value = projected[2] // 6 // num_heads, projected[2] // 3 // num_heads
    per_head = _BACKWARD_PER_STATE * _orders(scan) * key * value + 6 * key + 4 * value
    return 2 * prod(projected[:2]) * num_heads * per_head


@register_flop_formula(_ops.conv_silu_forward)
def _(x, weight, rows, cols, out_dtype, *, out_shape=None, **kwargs) -> int:
    return 2 * conv_macs(x)


@register_flop_formula(_ops.conv_silu_backward)
def _(dout, x, weight, rows, cols, *, out_shape=None, **kwargs) -> int:
    return 4 * conv_macs(x)


@register_flop_formula(_ops.conv_swiglu_forward)
def _(x, weight, rows, cols, *, out_shape=None, **kwargs) -> int:
    return conv_macs(x)  # half of the channels, two operations each


@register_flop_formula(_ops.conv_swiglu_backward)
def _(dout, x, weight, rows, cols, *, out_shape=None, **kwargs) -> int:
    return 2 * conv_macs(x)


@register_flop_formula(_ops.swiglu_mlp_forward)
def _(x, weight_in, weight_out, norm_weight, norm_bias, eps, conv_weight, *rest, out_shape=None, **kwargs) -> int:
    return 2 * mlp_macs(x, weight_in, weight_out, conv_weight or (0,))


@register_flop_formula(_ops.add_mixer_forward)
def _(x, *rest, out_shape=None, **kwargs) -> int:
    num_heads, _, _, scan, _, _ = rest[-6:]
    return 2 * half_block_macs(x, num_heads, _orders(scan))


# --- fvcore: it passes values of a traced graph


def fvcore_handles(form: str = "recurrent") -> dict[str, Callable | None]:
    """Handles by operator: `FlopCountAnalysis(model, x).set_op_handle(**fvcore_handles())`.

    Args:
        form: how scans are counted, "recurrent" or "chunkwise".
    """
    if form not in SCAN_FORMS:
        raise ValueError(f"form: got {form!r}, expected one of {tuple(SCAN_FORMS)}")
    scan = SCAN_FORMS[form]
    return {
        "metala::gated_linear_attention": lambda x, _: scan(_shape(x[0]), _shape(x[2]), _orders(x[6].toIValue())),
        "metala::mixer": lambda x, _: mixer_macs(_shape(x[0]), x[3].toIValue(), _orders(x[6].toIValue()), form),
        "metala::conv_silu": lambda x, _: conv_macs(_shape(x[0])),
        "metala::conv_swiglu": lambda x, _: conv_macs(_shape(x[0])) // 2,
        "metala::patches": None,  # a copy
        "metala::swiglu": None,  # element-wise
        "metala::swiglu_mlp": lambda x, _: mlp_macs(*map(_shape, x[:3])),
        # fvcore would count the LayerNorm in these two if it were a layer of its own, so they count it the same way
        "metala::add_swiglu_mlp": lambda x, _: 5 * prod(_shape(x[0])) + mlp_macs(*(_shape(x[i]) for i in (0, 4, 5, 6))),
        "metala::add_mixer": lambda x, _: (
            5 * prod(_shape(x[0])) + half_block_macs(_shape(x[0]), x[9].toIValue(), _orders(x[12].toIValue()), form)
        ),
    }


def _shape(value) -> tuple[int, ...]:
    """Of a tensor; (0,), nothing to count, of an optional one that is not given."""
    return tuple(value.type().sizes()) if isinstance(value.type(), torch.TensorType) else (0,)
