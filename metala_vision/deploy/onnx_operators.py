"""The operators of `metala_vision.kernels` in plain operators of ONNX: what torch.onnx.export puts in their place.

Each function has the arguments of the operator that it stands for, see `kernels.ops` and `kernels.unfused`. Constant
factors go into weights, which runtimes fold when they load a file: half a key and the scale of the queries, and twice
the output of a scan, which the LayerNorm behind it does not see but for its epsilon.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    RemoveUnusedNodesPass,
)
from onnxscript.optimizer import fold_constants

from metala_vision.kernels.reference import GATE_TEMPERATURE, NORM_EPS

from .onnx_pooling import adaptive_average, maximum
from .onnx_scan import GATE_CEILING, Sequence, heads_first, heads_last
from .onnx_values import (
    FLOAT,
    Value,
    constant,
    count,
    ints,
    known,
    layer_norm,
    like,
    op,
    part,
    shape,
    side,
    silu,
    transposed,
    wide,
)


def gated_linear_attention(
    q: Value,
    log_decay: Value,
    v: Value,
    k: Value | None,
    rows: Value,
    cols: Value,
    scan: str,
    scale: float | None = None,
    backend: str | None = None,
) -> Value:
    """See `kernels.ops.gated_linear_attention`: [B, N, H, K or V] -> [B, N, H, V]."""
    num_heads, key_dim, value_dim = *known_tail(q, 2), known_tail(v, 1)[0]
    scale = key_dim**-0.5 if scale is None else scale
    q = op.Mul(wide(q), constant(scale if k is not None else 2 * scale))
    gate = op.Clip(op.Mul(wide(log_decay), constant(-0.5)), constant(0.0), constant(GATE_CEILING))
    k = half_key(gate) if k is None else wide(k)
    widths = (key_dim, key_dim, key_dim, value_dim)
    flat = [op.Reshape(x, ints(0, 0, num_heads * width)) for x, width in zip((q, gate, k, wide(v)), widths)]
    own = (flat[0], flat[2], flat[3]), (num_heads, key_dim, value_dim)
    found: Value = None
    for sequence in sequences(rows, cols, scan):
        parts = [heads_first(sequence.split(x, num_heads * width), num_heads, width) for x, width in zip(flat, widths)]
        out = sequence.join(heads_last(sequence.scan(*parts), num_heads * value_dim), num_heads * value_dim)
        found = out if found is None else op.Sub(op.Add(found, out), own_term(*own[0], *own[1]))
    return like(op.Reshape(found, ints(0, 0, num_heads, value_dim)), v)


def own_term(q: Value, k: Value, v: Value, num_heads: int, key_dim: int, value_dim: int) -> Value:
    """(q . k) v of each token [B, N, H V], which the scans along both axes have."""
    heads = [op.Reshape(x, ints(0, 0, num_heads, width)) for x, width in ((q, key_dim), (k, key_dim), (v, value_dim))]
    seen = op.ReduceSum(op.Mul(heads[0], heads[1]), ints(-1), keepdims=1)
    return op.Reshape(op.Mul(seen, heads[2]), ints(0, 0, num_heads * value_dim))


def mixer(
    projected: Value,
    gate_bias: Value,
    aug_weight: Value,
    num_heads: int,
    rows: Value,
    cols: Value,
    scan: str,
    backend: str | None = None,
    decay_scale: float | Value = 1.0,
) -> Value:
    """See `kernels.ops.mixer`: [B, N, 3 C] -> [B, N, C]."""
    dim = known(gate_bias)[0]
    x = wide(projected)
    key_dim = dim // 2 // num_heads
    q, logits = op.Mul(part(x, 0, dim // 2), constant(4 * key_dim**-0.5)), op.Neg(part(x, dim // 2, dim))
    v, z = part(x, dim, 2 * dim), op.Add(part(x, 2 * dim, 3 * dim), wide(gate_bias))
    along = sequences(rows, cols, scan)
    if len(along) == 1:
        sequence = along[0]
        q, logits = sequence.split(q, dim // 2), sequence.split(logits, dim // 2)
        v, z = sequence.split(v, dim), sequence.split(z, dim)
        out = _mixed(sequence, q, logits, v, z, aug_weight, num_heads, dim, decay_scale)
        return like(sequence.join(out, dim), projected)
    gate = _gate(logits, decay_scale)
    k = half_key(gate)
    found: Value = None
    for sequence in along:
        parts = ((q, key_dim), (gate, key_dim), (k, key_dim), (v, 2 * key_dim))
        heads = [heads_first(sequence.split(y, num_heads * width), num_heads, width) for y, width in parts]
        out = sequence.join(heads_last(sequence.scan(*heads), dim), dim)
        found = out if found is None else op.Sub(op.Add(found, out), own_term(q, k, v, num_heads, key_dim, 2 * key_dim))
    q, k, v, o = (op.Reshape(y, ints(0, 0, num_heads, -1)) for y in (q, k, v, found))
    weight = op.Reshape(_aug(aug_weight, key_dim), ints(num_heads, key_dim))
    seen = op.ReduceSum(op.Mul(op.Mul(q, k), weight), ints(-1), keepdims=1)
    out = op.Reshape(_normed(o, seen, v, 2 * key_dim), ints(0, 0, dim))
    return like(op.Mul(silu(z), out), projected)


def add_mixer(
    x: Value,
    norm_weight: Value,
    norm_bias: Value,
    eps: float,
    conv_weight: Value,
    weight_in: Value,
    gate_bias: Value,
    aug_weight: Value,
    weight_out: Value,
    num_heads: int,
    rows: Value,
    cols: Value,
    scan: str,
    decay_scale: float | Value = 1.0,
    bias_in: Value | None = None,
) -> Value:
    """See `kernels.ops.add_mixer`: [B, N, C] -> [B, N, C]. `bias_in` is zero but for the decay, as a MetaLA has it."""
    dim = known(norm_weight)[0]
    h = conv_silu(layer_norm(x, norm_weight, norm_bias, eps), conv_weight, rows, cols)
    flat = sequences(rows, cols, scan)
    if len(flat) > 1:
        projected = op.MatMul(h, transposed(weight_in))
        projected = projected if bias_in is None else op.Add(projected, bias_in)
        mixed = mixer(projected, gate_bias, aug_weight, num_heads, rows, cols, scan, None, decay_scale)
        return op.Add(x, op.MatMul(mixed, transposed(weight_out)))
    sequence = flat[0]
    h = sequence.split(h, dim)
    weights = [part(transposed(weight_in), *ends) for ends in ((0, dim // 2), (dim // 2, dim), (dim, 2 * dim))]
    gate = part(transposed(weight_in), 2 * dim, 3 * dim)
    scale = constant(4 * (dim // 2 // num_heads) ** -0.5)
    q = wide(op.MatMul(h, op.Mul(weights[0], like(scale, weights[0]))))
    logits = wide(op.MatMul(h, op.Neg(weights[1])))
    if bias_in is not None:
        logits = op.Sub(logits, wide(part(bias_in, dim // 2, dim, axis=0)))
    v, z = wide(op.MatMul(h, weights[2])), op.Add(wide(op.MatMul(h, gate)), wide(gate_bias))
    mixed = like(_mixed(sequence, q, logits, v, z, aug_weight, num_heads, dim, decay_scale), x)
    return op.Add(x, sequence.join(op.MatMul(mixed, transposed(weight_out)), dim))


def _mixed(
    sequence: Sequence,
    q: Value,
    logits: Value,
    v: Value,
    z: Value,
    aug_weight: Value,
    num_heads: int,
    dim: int,
    decay_scale: float | Value,
) -> Value:
    """What `mixer` does, in the chunks of one axis: q four times as large, the negative logits; [B, M, T, C]."""
    key_dim = dim // 2 // num_heads
    q, logits, v = (
        heads_first(x, num_heads, width) for x, width in ((q, key_dim), (logits, key_dim), (v, 2 * key_dim))
    )
    gate = _gate(logits, decay_scale)
    k = half_key(gate)
    weight = op.Reshape(_aug(aug_weight, key_dim), ints(num_heads, 1, key_dim, 1))
    seen = op.MatMul(op.Mul(q, k), weight)
    return op.Mul(silu(z), heads_last(_normed(sequence.scan(q, gate, k, v), seen, v, 2 * key_dim), dim))


def _gate(negative_logits: Value, decay_scale: float | Value) -> Value:
    """-log_decay / 2 of a MetaLA layer; not by the sigmoid, which onnxruntime bounds below at exp(-18)."""
    factor = 0.5 / GATE_TEMPERATURE
    if isinstance(decay_scale, int | float):
        scale = constant(factor * decay_scale)
    else:
        scale = op.Mul(op.Cast(decay_scale, to=FLOAT), constant(factor))
    return op.Min(op.Mul(op.Softplus(negative_logits), scale), constant(GATE_CEILING))


def half_key(gate: Value) -> Value:
    """(1 - exp(-2 gate)) / 2 to the last digit: a difference would have none near zero."""
    tangent = op.Tanh(gate)
    return op.Div(tangent, op.Add(tangent, constant(1.0)))


def _aug(aug_weight: Value, key_dim: int) -> Value:
    """The weights of the self-augmentation for the product of q, four times as large, and half a key."""
    return op.Mul(wide(aug_weight), constant(0.25 * key_dim**0.5))


def _normed(o: Value, seen: Value, v: Value, value_dim: int) -> Value:
    """LayerNorm of the output of the scans and of the self-augmentation tanh(seen v), both twice as large."""
    return layer_norm(op.Add(o, op.Tanh(op.Mul(seen, v))), constant(np.ones(value_dim)), None, 4 * NORM_EPS)


def sequences(rows: Value, cols: Value, scan: str) -> list[Sequence]:
    """One for each axis of the scan orders."""
    orders = scan.split(",")
    along = [tuple(order for order in orders if order.startswith(axis)) for axis in ("row", "column")]
    return [Sequence(side(rows), side(cols), some) for some in along if some]


def known_tail(x: Value, number: int) -> list[int]:
    """The last sizes of a value, which are known."""
    return [int(size) for size in list(x.shape)[-number:]]


def conv_silu(x: Value, weight: Value, rows: Value, cols: Value) -> Value:
    """See `kernels.unfused.conv_silu`."""
    dim = known(weight)[0]
    image = op.Transpose(op.Reshape(x, shape(-1, side(rows), side(cols), dim)), perm=[0, 3, 1, 2])
    image = silu(op.Conv(image, weight, pads=[1, 1, 1, 1], group=dim))
    return op.Reshape(op.Transpose(image, perm=[0, 2, 3, 1]), ints(0, -1, dim))


def conv_swiglu(x: Value, weight: Value, rows: Value, cols: Value) -> Value:
    """See `kernels.unfused.conv_swiglu`."""
    dim = known(weight)[0]
    return op.Mul(conv_silu(part(x, 0, dim), weight, rows, cols), part(x, dim, 2 * dim))


def swiglu(x: Value) -> Value:
    """See `kernels.unfused.swiglu`."""
    gate, value = op.Split(x, axis=-1, num_outputs=2)
    return op.Mul(silu(gate), value)


def swiglu_mlp(x: Value, weight_in: Value, weight_out: Value) -> Value:
    """See `kernels.ops.swiglu_mlp`: two products, since taking one apart would copy it."""
    hidden = known(weight_out)[1]
    gate, value = (op.MatMul(x, part(transposed(weight_in), first, first + hidden)) for first in (0, hidden))
    return op.MatMul(op.Mul(silu(gate), value), transposed(weight_out))


def add_swiglu_mlp(
    x: Value,
    norm_weight: Value,
    norm_bias: Value,
    eps: float,
    weight_in: Value,
    weight_out: Value,
    conv_weight: Value | None = None,
    rows: Value | int = 0,
    cols: Value | int = 0,
) -> Value:
    """See `kernels.ops.add_swiglu_mlp`."""
    h = layer_norm(x, norm_weight, norm_bias, eps)
    if conv_weight is None:
        return op.Add(x, swiglu_mlp(h, weight_in, weight_out))
    h = conv_swiglu(op.MatMul(h, transposed(weight_in)), conv_weight, rows, cols)
    return op.Add(x, op.MatMul(h, transposed(weight_out)))


def log_sigmoid(x: Value) -> Value:
    """torch's exporter writes the logarithm of a sigmoid, which onnxruntime bounds below at exp(-18)."""
    return op.Neg(op.Softplus(op.Neg(x)))


def expm1(x: Value) -> Value:
    """To the last digit; torch's exporter writes a difference."""
    half = constant(0.5)
    return op.Mul(op.Tanh(op.Mul(x, like(half, x))), op.Add(op.Exp(x), like(constant(1.0), x)))


def bicubic(x: Value, size: list[int | Value], align_corners: bool, *scales: float | None) -> Value:
    """Resampling of [B, C, rows, cols] with antialiasing as two products: in OpenVINO a Resize has other weights."""
    former = [int(length) for length in list(x.shape)[2:]]
    rows, cols = (_bicubic_weights(n, side(length)) for n, length in zip(former, size))
    return like(op.MatMul(op.MatMul(rows, wide(x)), transposed(cols)), x)


def _bicubic_weights(former: int, length: Value) -> Value:
    """[length, former], as torch and Pillow have it: the cubic with a = -1/2, wider where the size shrinks."""
    scale = op.Div(constant(float(former)), op.Cast(length, to=FLOAT))
    centre = op.Mul(op.Add(op.Cast(count(length), to=FLOAT), constant(0.5)), scale)
    place = constant(np.arange(former) + 0.5)
    x = op.Abs(op.Div(op.Sub(place, op.Unsqueeze(centre, ints(1))), op.Max(scale, constant(1.0))))
    square = op.Mul(x, x)
    near = op.Add(op.Mul(op.Sub(op.Mul(x, constant(1.5)), constant(2.5)), square), constant(1.0))
    polynomial = op.Add(op.Mul(op.Sub(op.Mul(x, constant(-0.5)), constant(-2.5)), square), op.Mul(x, constant(-4.0)))
    far = op.Where(op.Less(x, constant(2.0)), op.Add(polynomial, constant(2.0)), constant(0.0))
    weights = op.Where(op.Less(x, constant(1.0)), near, far)
    return op.Div(weights, op.ReduceSum(weights, ints(1), keepdims=1))


def translations() -> dict[Callable, Callable]:
    """What torch.onnx.export takes as `custom_translation_table`."""
    metala, aten = torch.ops.metala, torch.ops.aten
    return {
        metala.gated_linear_attention.default: gated_linear_attention,
        metala.mixer.default: mixer,
        metala.add_mixer.default: add_mixer,
        metala.conv_silu.default: conv_silu,
        metala.conv_swiglu.default: conv_swiglu,
        metala.swiglu.default: swiglu,
        metala.swiglu_mlp.default: swiglu_mlp,
        metala.add_swiglu_mlp.default: add_swiglu_mlp,
        aten.log_sigmoid.default: log_sigmoid,
        aten.expm1.default: expm1,
        aten._upsample_bicubic2d_aa.default: bicubic,
        aten.adaptive_avg_pool2d.default: adaptive_average,
        aten._adaptive_avg_pool2d.default: adaptive_average,
        aten.max_pool2d.default: maximum,
    }


def simplify(model: Any) -> None:
    """Folds what is constant in a graph, and computes once what is computed in every block; in place.

    torch's exporter would also look for patterns to rewrite, which takes longer than all else and finds none here.
    """
    # Weights of any size: what is quantized has to be found as weights, and a transposed one is none yet.
    fold_constants(model, input_size_limit=1 << 31, output_size_limit=1 << 31)
    for change in (CommonSubexpressionEliminationPass(), IdentityEliminationPass(), RemoveUnusedNodesPass()):
        change(model)
