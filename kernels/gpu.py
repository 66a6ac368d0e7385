"""Gated linear attention and the fused MetaLA mixer in Triton, for NVIDIA and AMD: the host side.

Plain functions on tensors that share a device; `ops.py` checks the arguments, registers the operators and owns
autograd. The kernels are in gpu_forward.py and gpu_backward.py, and how each is built is in gpu_plan.py. No atomics:
equal inputs give equal bits.

Shapes: B batch, N tokens (rows * cols of the grid, row-major), H heads, K key channels, V value channels, C = H * V.
"""

import contextlib

import torch
import triton
from torch import Tensor

from .backends import MAX_TRITON_WIDTH
from .gpu_backward import gated_norm_gradient, key_value_gradients, query_gradients
from .gpu_forward import combine, outputs, segment_states
from .gpu_plan import FUSED, Plan, padded
from .reference import GATE_TEMPERATURE

# What one launch of `key_value_gradients` computes, by (half, wide).
PARTS = {
    (False, False): (("keys",), ("values",)),
    (False, True): (("keys",), ("values",)),
    (True, False): (("keys", "values"),),
    (True, True): (("keys",), ("values",)),
}
COMBINE = {"BE": 128, "BS": 8, "num_warps": 4, **FUSED}
NORM = {"BT": 16, "num_warps": 4, **FUSED}  # of `gated_norm_gradient`


def forward(
    q: Tensor,
    log_decay: Tensor,
    v: Tensor,
    k: Tensor | None,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    scale: float,
) -> Tensor:
    """`reference.recurrence` that clamps `log_decay` itself, with k = 1 - exp(log_decay) if `k` is None.

    q, log_decay, k [B, N, H, K] and v [B, N, H, V], float32 or half and any strides -> [B, N, H, V], dtype of `v`.
    Values that are wider than the kernels take are scanned in parts: their channels know nothing of each other.
    """
    if v.shape[-1] > MAX_TRITON_WIDTH:
        parts = v.split(MAX_TRITON_WIDTH, -1)
        return torch.cat([forward(q, log_decay, part, k, grid, scan, scale) for part in parts], -1)
    q, log_decay, v, k = _rows(q), _rows(log_decay), _rows(v), None if k is None else _rows(k)
    out = v.new_empty(v.shape)
    single = v.dtype == torch.float32 or len(scan) == 1
    partial = out if single else v.new_empty(v.shape, dtype=torch.float32)
    with _device(v):
        _scan(q, log_decay, v, k, grid, scan, scale, partial, out)
    return out


def backward(
    grad_out: Tensor,
    q: Tensor,
    log_decay: Tensor,
    v: Tensor,
    k: Tensor | None,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, log_decay, v and k (None where it was None), contiguous, each in the dtype of its input."""
    if v.shape[-1] > MAX_TRITON_WIDTH:
        pairs = zip(grad_out.split(MAX_TRITON_WIDTH, -1), v.split(MAX_TRITON_WIDTH, -1))
        # Sums over all values are rounded once, at the end: those of the parts may cancel.
        parts = [_gradients(grad, q, log_decay, part, k, grid, scan, scale, torch.float32) for grad, part in pairs]
        dq, dg, dv, dk = zip(*parts)
        dq, dg = sum(dq[1:], dq[0]).to(q.dtype), sum(dg[1:], dg[0]).to(log_decay.dtype)
        return dq, dg, torch.cat(dv, -1), None if k is None else sum(dk[1:], dk[0]).to(k.dtype)
    return _gradients(grad_out, q, log_decay, v, k, grid, scan, scale)


def _gradients(
    grad_out, q, log_decay, v, k, grid, scan, scale, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`backward` for values that the kernels take at once; gradients of all but v in `dtype`, if there is one."""
    grads = [q.new_empty(q.shape, dtype=dtype), log_decay.new_empty(log_decay.shape, dtype=dtype), v.new_empty(v.shape)]
    grad_k = None if k is None else k.new_empty(k.shape, dtype=dtype)
    sums = [_sum_for(x) for x in grads]
    sum_k = None if grad_k is None else _sum_for(grad_k)
    with _device(v):
        rows_k = None if k is None else _rows(k)
        _scan_backward(
            _rows(grad_out), _rows(q), _rows(log_decay), _rows(v), rows_k, grid, scan, scale,
            [*sums, sum_k], [*grads, grad_k],
        )  # fmt: skip
    return grads[0], grads[1], grads[2], grad_k


def mixer_forward(
    projected: Tensor,
    gate_bias: Tensor,
    aug_weight: Tensor,
    num_heads: int,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    keep: bool = True,
    decay_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Everything between MetaLA's two projections.

    q, logits, v, z = split of `projected` [B, N, 3C] into C/2, C/2, C, C channels
    g = decay_scale * logsigmoid(logits) / 16, clamped to [-5, 0]
    o = gated_linear_attention(q, g, v) + sigmoid((q . (aug_weight * k)) v) - 1/2
    y = SiLU(z + gate_bias) * LayerNorm_per_head(o)

    Args:
        projected: [B, N, 3C].
        gate_bias: [C].
        aug_weight: [C/2].
        num_heads: H.
        grid: (rows, cols).
        scan: scan orders.
        keep: whether `mixer_backward` will need o.
        decay_scale: factor on the log-decay.

    Returns:
        y [B, N, C] in the dtype of `projected`, and o [B, N, C] in float32, empty without `keep`.
    """
    projected = _rows(projected)
    q, logits, v, z = _parts(projected, num_heads)
    y = projected.new_empty(*projected.shape[:2], z.shape[2] * z.shape[3])
    o = projected.new_empty(y.shape if keep or len(scan) > 1 else (0,), dtype=torch.float32)
    with _device(projected):
        mixer = (z, gate_bias.contiguous(), aug_weight.contiguous())
        _scan(q, logits, v, None, grid, scan, q.shape[-1] ** -0.5, o, y, mixer, keep, decay_scale / GATE_TEMPERATURE)
    return y, o if keep else o.new_empty(0)


def mixer_backward(
    grad_y: Tensor,
    projected: Tensor,
    gate_bias: Tensor,
    aug_weight: Tensor,
    o: Tensor,
    num_heads: int,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    decay_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `mixer_forward`: of projected in its dtype, of gate_bias [C] and aug_weight [C/2] in float32."""
    projected, grad_y, o = _rows(projected), _rows(grad_y), o.contiguous()
    q, logits, v, z = _parts(projected, num_heads)
    batch, tokens, heads, value = v.shape
    grad_projected = projected.new_empty(projected.shape)
    if projected.dtype != torch.float32:
        # The sums have the strides of the gradients that they become. Their z part is free for the gradient of o.
        sums = projected.new_empty(projected.shape, dtype=torch.float32)
        grad_o = _parts(sums, heads)[3]
    else:
        sums = grad_projected
        grad_o = projected.new_empty(v.shape)
    rows = batch * tokens
    row_blocks = max(1, min(8, rows * heads // (1024 * NORM["BT"])))
    programs = triton.cdiv(rows, row_blocks * NORM["BT"])
    grad_bias = o.new_empty(programs, heads * value)
    grad_z = _parts(grad_projected, heads)[3]
    grad_y = grad_y.unflatten(-1, (heads, value))
    with _device(projected):
        gated_norm_gradient[(programs * heads,)](
            grad_y, o, z, gate_bias.contiguous(), grad_o, grad_z, grad_bias, tokens, batch, heads, row_blocks,
            *_strides(z, grad_y, grad_o), *grad_z.stride()[:2], V=value, VP=padded(value), **NORM,
        )  # fmt: skip
        grad_weight = _scan_backward(
            grad_o, q, logits, v, None, grid, scan, q.shape[-1] ** -0.5,
            [*_parts(sums, heads)[:3], None], [*_parts(grad_projected, heads)[:3], None], aug_weight.contiguous(),
            decay_scale / GATE_TEMPERATURE,
        )  # fmt: skip
    return grad_projected, grad_bias.sum(0), grad_weight.sum((0, 1)).flatten()


def _device(x: Tensor) -> contextlib.AbstractContextManager:
    """Makes the device of `x` the current one, since Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _sum_for(grad: Tensor) -> Tensor:
    """Where several orders add up in float32, before the sum is rounded to the dtype of `grad`."""
    return grad if grad.dtype == torch.float32 else grad.new_empty(grad.shape, dtype=torch.float32)


def _rows(x: Tensor) -> Tensor:
    """`x` with its channels side by side in memory; of the other axes the kernels take any strides."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _parts(x: Tensor, heads: int) -> list[Tensor]:
    """[B, N, 3C] -> views of its q [B, N, H, K], logits [B, N, H, K], v [B, N, H, V] and z [B, N, H, V]."""
    half = x.shape[-1] // 6
    return [part.unflatten(-1, (heads, -1)) for part in x.split([half, half, 2 * half, 2 * half], dim=-1)]


def _strides(*tensors: Tensor) -> list[int]:
    """Batch, token and head strides of each."""
    return [stride for x in tensors for stride in x.stride()[:3]]


def _states(
    plan: Plan, orders: int, column: bool, reverse: bool, logits: bool, grad_out: Tensor | None = None
) -> Tensor:
    """Running states [B * H, orders, 1 or 2, segments, KP, VP]; with `grad_out` the second is the adjoint state.

    With one segment it is a placeholder, since no state enters that segment.
    """
    v, adjoint = plan.inputs[3], grad_out is not None
    if plan.segments == 1:
        return v.new_empty(1, dtype=torch.float32)
    states = v.new_empty(plan.sequences, orders, 1 + adjoint, plan.segments, *plan.state, dtype=torch.float32)
    totals = v.new_empty(plan.sequences, orders, plan.segments, plan.state[0], dtype=torch.float32)
    grad_out = v if grad_out is None else grad_out  # v is not read
    tile = plan.tile("segment_states")
    segment_states[(plan.sequences * plan.segments * orders * (plan.state[1] // tile),)](
        *plan.inputs, grad_out, states, totals, *plan.sizes, *_strides(*plan.inputs, grad_out), BV=tile,
        LOGITS=logits, COLUMN=column, REVERSE=reverse, ORDERS=orders, ADJOINT=adjoint,
        **plan.config("segment_states"),
    )  # fmt: skip
    tiles = triton.cdiv(plan.state[0] * plan.state[1], COMBINE["BE"])
    combine[(plan.sequences * orders * (1 + adjoint) * tiles,)](
        states, totals, plan.segments, KP=plan.state[0], VP=plan.state[1],
        REVERSE=reverse, ORDERS=orders, ADJOINT=adjoint, **COMBINE,
    )  # fmt: skip
    return states


def _scan(
    q,
    gate,
    v,
    k,
    grid,
    scan,
    scale: float,
    partial: Tensor,
    out: Tensor,
    mixer: tuple | None = None,
    keep: bool = False,
    root: float = 1.0,
) -> None:
    """Fills `out`, with `partial` for the sums on the way; `mixer` is (z, gate_bias, aug_weight) of the fused mixer."""
    plan = Plan(q, gate, v, k, grid, scale, root)
    tile = plan.state[1] if mixer else plan.tile("outputs")  # the norm needs all of V
    by_axis = {axis: [order for order in scan if order.startswith(axis)] for axis in ("row", "column")}
    axes = [
        (axis == "column", orders == [f"{axis}_reverse"], len(orders)) for axis, orders in by_axis.items() if orders
    ]
    for i, (column, reverse, orders) in enumerate(axes):
        last = i == len(axes) - 1
        states = _states(plan, orders, column, reverse, mixer is not None)
        z, gate_bias, aug_weight = mixer or (v, v, v)
        outputs[(plan.sequences * plan.segments * (plan.state[1] // tile),)](
            *plan.inputs, states, partial, out, z, gate_bias, aug_weight, *plan.sizes, *_strides(*plan.inputs, z),
            BV=tile, MIXER=mixer is not None, COLUMN=column, REVERSE=reverse, ORDERS=orders, FIRST=i == 0, LAST=last,
            SEGMENTED=plan.segments > 1, KEEP=keep or not last, **plan.config("outputs"),
        )  # fmt: skip


def _scan_backward(
    grad_out,
    q,
    gate,
    v,
    k,
    grid,
    scan,
    scale: float,
    sums: list,
    grads: list,
    aug_weight: Tensor | None = None,
    root: float = 1.0,
) -> Tensor:
    """Fills `grads` of q, gate, v and k, by way of `sums`; returns the mixer's for aug_weight, [B, segments, H, K]."""
    plan = Plan(q, gate, v, k, grid, scale, root)
    batch, _, heads, key = q.shape
    mixer = aug_weight is not None
    chunk_states = v.new_empty(plan.sequences, plan.chunks, *plan.state, dtype=torch.float32)
    grad_weight = v.new_empty(batch, plan.segments, heads, key, dtype=torch.float32) if mixer else chunk_states
    (dq_sum, dgate_sum, dv_sum, dk_sum), (dq, dgate, dv, dk) = sums, grads
    if k is None:
        dk_sum, dk = dq_sum, dq  # the kernels do not write them
    for i, order in enumerate(scan):
        column, reverse = order.startswith("column"), order.endswith("_reverse")
        states = _states(plan, 1, column, reverse, mixer, grad_out)
        shared = (*plan.inputs, grad_out, states, chunk_states, aug_weight if mixer else v)
        sizes = (*plan.sizes, *_strides(*plan.inputs, grad_out), *dq.stride()[:2])
        constants = dict(COLUMN=column, REVERSE=reverse, FIRST=i == 0, LAST=i == len(scan) - 1)
        constants |= dict(MIXER=mixer, SEGMENTED=plan.segments > 1)
        query_gradients[(plan.sequences * plan.segments,)](
            *shared, dq_sum, dq, dgate_sum, grad_weight, *sizes, **constants, **plan.config("query_gradients")
        )
        for parts in PARTS[plan.half, plan.wide]:
            key_value_gradients[(plan.sequences * plan.segments,)](
                *shared, dgate_sum, dgate, dk_sum, dk, dv_sum, dv, *sizes, *dv.stride()[:2],
                KEYS="keys" in parts, VALUES="values" in parts, **constants, **plan.config("key_value_gradients"),
            )  # fmt: skip
    return grad_weight
