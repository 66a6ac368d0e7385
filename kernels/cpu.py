"""The C scans on torch tensors: the mirror of the structures in scan.c and scan_backward.c.

They are called inside registered operators, where autograd cannot see them. Inputs are all float32 or all bfloat16.
State, sums and gradients are float32; the operators cast the gradients to the dtypes that their caller expects.

Shapes: B batch, N tokens (rows * cols, row-major), H heads, K key channels, V value channels, C = H * V.
"""

from ctypes import Structure, byref, c_int64, c_void_p

import torch
from torch import Tensor

from . import cpu_channels, native
from .cpu_calls import channels_contiguous, check, function, is_half, scratch
from .cpu_problem import Problem, View, divide, of_one_dtype, problem_of, view
from .reference import GATE_TEMPERATURE, NORM_EPS, SCAN_ORDERS


class _Forward(Structure):
    _fields_ = [("p", Problem), ("out", View), ("o", c_void_p), ("keep_o", c_int64), ("states", c_void_p)]


class _Backward(Structure):
    _fields_ = [
        ("p", Problem),
        ("dout", View),
        ("dout_half", c_int64),
        ("o", c_void_p),
        *((name, View) for name in ("dq", "ddecay", "dv", "dk", "dz")),
        *((name, c_void_p) for name in ("dbias", "daug", "scanned", "states")),
    ]


def forward(
    q: Tensor,
    log_decay: Tensor,
    v: Tensor,
    k: Tensor | None,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    scale: float,
) -> Tensor:
    """`reference.recurrence` that clamps log_decay itself, with k = 1 - exp(log_decay) if `k` is None: [B, N, H, V]."""
    if q.shape[3] == v.shape[3] == 1:
        return cpu_channels.forward(q, log_decay, v, k, grid, scan, scale)
    q, log_decay, v, k = of_one_dtype(q, log_decay, v, k)
    problem = problem_of(q, log_decay, v, k, grid, scan, scale)
    out = v.new_empty(v.shape)
    _run_forward(problem, out, view(out), None)
    return out


def backward(
    dout: Tensor,
    q: Tensor,
    log_decay: Tensor,
    v: Tensor,
    k: Tensor | None,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `forward`: dq, dlog_decay, dv and dk (None without k), float32 in the shapes of the inputs."""
    if q.shape[3] == v.shape[3] == 1:
        return cpu_channels.backward(dout, q, log_decay, v, k, grid, scan, scale)
    q, log_decay, v, k = of_one_dtype(q, log_decay, v, k)
    problem = problem_of(q, log_decay, v, k, grid, scan, scale)
    dout = channels_contiguous(dout if is_half(dout) else dout.float())
    dv = v.new_empty(v.shape, dtype=torch.float32)
    batch, tokens, heads, key = q.shape

    def room(x: Tensor) -> Tensor:
        return x.new_empty(batch, tokens, heads * problem.share, key, dtype=torch.float32)

    dq, dg, dk = room(q), room(log_decay), None if k is None else room(k)
    call = _Backward(problem, view(dout), is_half(dout))
    call.dq, call.ddecay, call.dv, call.dk = view(dq), view(dg), view(dv), view(dk)
    _run_backward(call)
    dq, dg = _sum_blocks(dq, problem.share), _sum_blocks(dg, problem.share)
    return dq, dg, dv, None if dk is None else _sum_blocks(dk, problem.share)


def mixer_forward(
    projected: Tensor,
    gate_bias: Tensor,
    aug_weight: Tensor,
    num_heads: int,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    keep: bool,
    decay_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """From the fused projection [B, N, 3 C] (q, logits, v, z) to the gated output [B, N, C].

    With `keep` the second result is the LayerNorm's input, float32 [B, N, C], which `mixer_backward` needs.
    """
    batch, tokens, width = projected.shape
    shape = (batch, tokens, width // 3)
    out = projected.new_empty(shape, dtype=torch.bfloat16 if is_half(projected) else torch.float32)
    o = out.new_empty(shape if keep else (0,), dtype=torch.float32)
    mixer_into(projected, gate_bias, aug_weight, num_heads, grid, scan, out, o if keep else None, decay_scale)
    return out, o


def mixer_into(
    projected: Tensor,
    gate_bias: Tensor,
    aug_weight: Tensor,
    num_heads: int,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    out: Tensor,
    o: Tensor | None = None,
    decay_scale: float = 1.0,
) -> None:
    """Writes `mixer_forward` to `out` [B, N, C], contiguous, and the LayerNorm's input to `o` if it is given."""
    problem, *kept_alive = _mixer(projected, gate_bias, aug_weight, num_heads, grid, scan, decay_scale)
    _run_forward(problem, out, _by_head(out, num_heads), o)


def mixer_backward(
    dy: Tensor,
    projected: Tensor,
    gate_bias: Tensor,
    aug_weight: Tensor,
    o: Tensor,
    num_heads: int,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    decay_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of projected [B, N, 3 C], gate_bias [C] and aug_weight [C / 2], float32."""
    problem, projected, *parameters = _mixer(projected, gate_bias, aug_weight, num_heads, grid, scan, decay_scale)
    batch, tokens, width = projected.shape
    dim = width // 3
    dy = (dy if is_half(dy) else dy.float()).contiguous()
    dprojected = projected.new_empty(projected.shape, dtype=torch.float32)
    call = _Backward(problem, _by_head(dy, num_heads), is_half(dy), o.data_ptr())
    call.dq, call.ddecay, call.dv, call.dz = _parts(dprojected, num_heads)
    blocks = None  # dq and ddecay for each block of V
    if problem.share > 1:
        key = dim // 2 // num_heads
        blocks = o.new_empty(2, batch, tokens, num_heads * problem.share, key)
        call.dq, call.ddecay = map(view, blocks)
    dbias = o.new_empty(batch * function("metala_backward_blocks", c_int64)(byref(problem)), dim)
    daug = o.new_empty(batch, num_heads, problem.share, len(scan), dim // 2 // num_heads)
    scanned = o.new_empty(batch, tokens, dim)
    call.dbias, call.daug, call.scanned = dbias.data_ptr(), daug.data_ptr(), scanned.data_ptr()
    _run_backward(call)
    if blocks is not None:
        summed = _sum_blocks(blocks, problem.share).flatten(3)
        dprojected[..., :dim] = summed.movedim(0, -2).flatten(2)
    return dprojected, dbias.sum(0), daug.sum((0, 2, 3)).flatten()


def _by_head(x: Tensor, num_heads: int) -> View:
    """[B, N, H * X], contiguous, as [B, N, H, X]."""
    _, tokens, dim = x.shape
    return View(x.data_ptr(), tokens * dim, dim, dim // num_heads)


def _parts(projected: Tensor, num_heads: int) -> list[View]:
    """[B, N, 3 C], contiguous -> q, logits [B, N, H, K] and v, z [B, N, H, V]."""
    _, tokens, width = projected.shape
    start, size, half = projected.data_ptr(), projected.element_size(), width // 6
    key, value = half // num_heads, 2 * half // num_heads
    offsets = ((0, key), (half, key), (2 * half, value), (4 * half, value))
    return [View(start + at * size, tokens * width, width, head) for at, head in offsets]


def _mixer(
    projected: Tensor,
    gate_bias: Tensor,
    aug_weight: Tensor,
    num_heads: int,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    decay_scale: float,
) -> tuple[Problem, Tensor, Tensor, Tensor]:
    """The problem of a gated scan, and the tensors it points into, which must stay alive during the call."""
    projected = (projected if is_half(projected) else projected.float()).contiguous()
    gate_bias, aug_weight = gate_bias.float().contiguous(), aug_weight.float().contiguous()
    half = projected.shape[2] // 6
    key, value = half // num_heads, 2 * half // num_heads
    orders = (c_int64 * 4)(*map(SCAN_ORDERS.index, scan))
    problem = Problem(projected.shape[0], num_heads, *grid, key, value, len(scan), orders)
    divide(problem, native.num_threads())
    problem.half, problem.logits, problem.gated = is_half(projected), 1, 1
    problem.scale, problem.root, problem.eps = key**-0.5, decay_scale / GATE_TEMPERATURE, NORM_EPS
    problem.q, problem.decay, problem.v, problem.z = _parts(projected, num_heads)
    problem.gate_bias, problem.aug_weight = gate_bias.data_ptr(), aug_weight.data_ptr()
    return problem, projected, gate_bias, aug_weight


def _sum_blocks(x: Tensor, share: int) -> Tensor:
    """[..., H * share, K] -> [..., H, K]."""
    return x if share == 1 else x.unflatten(-2, (-1, share)).sum(-2)


def _run_forward(problem: Problem, out: Tensor, layout: View, o: Tensor | None) -> None:
    """Runs the scan. The sums over the orders go to `o` if it is given; else `out` or scratch holds them meanwhile."""
    states = function("metala_forward_states", c_int64)(byref(problem))
    in_one_go = problem.orders == 1 and problem.share == 1
    summed = 0 if o is not None or out.dtype == torch.float32 or in_one_go else out.numel()
    memory = scratch("states", states + summed, torch.float32)
    place = out if out.dtype == torch.float32 else memory[states:]
    call = _Forward(problem, layout, (place if o is None else o).data_ptr(), o is not None, memory.data_ptr())
    check(function("metala_forward")(byref(call)))


def _run_backward(call: _Backward) -> None:
    states = function("metala_backward_states", c_int64)(byref(call.p))
    memory = scratch("states", states, torch.float32)
    call.states = memory.data_ptr()
    check(function("metala_backward")(byref(call)))
