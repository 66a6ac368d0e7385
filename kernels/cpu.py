"""The C kernels on torch tensors: the mirror of the structures in scan.h, scan.c, scan_backward.c and tokens.c.

Called inside registered operators, where autograd cannot see them. Inputs are float32, or bfloat16 throughout; state
and sums are float32, and so is every gradient, which the operators cast to what their caller expects.

Shapes: B batch, N tokens (rows * cols, row-major), H heads, K key channels, V value channels, C = H * V.
"""

import ctypes
from ctypes import Structure, byref, c_float, c_int64, c_void_p

import torch
from torch import Tensor

from . import native
from .reference import GATE_TEMPERATURE, SCAN_ORDERS

EPS = 1e-5  # of the LayerNorm per head
MLP_TILE_BYTES = 8 << 20  # hidden channels of the tokens that go through an MLP at a time


class _Tensor(Structure):
    _fields_ = [("data", c_void_p), ("batch", c_int64), ("token", c_int64), ("head", c_int64)]


class _Problem(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "rows", "cols", "key", "value", "orders")),
        ("order", c_int64 * 4),
        *((name, c_int64) for name in ("threads", "half", "logits", "gated")),
        *((name, c_float) for name in ("scale", "root", "eps")),
        *((name, _Tensor) for name in ("q", "decay", "k", "v", "z")),
        ("gate_bias", c_void_p),
        ("aug_weight", c_void_p),
    ]


class _Forward(Structure):
    _fields_ = [("p", _Problem), ("out", _Tensor), ("o", c_void_p), ("keep_o", c_int64), ("states", c_void_p)]


class _Backward(Structure):
    _fields_ = [
        ("p", _Problem),
        ("dout", _Tensor),
        ("dout_half", c_int64),
        ("o", c_void_p),
        *((name, _Tensor) for name in ("dq", "ddecay", "dv", "dk", "dz")),
        *((name, c_void_p) for name in ("dbias", "daug", "scanned", "states")),
    ]


class _Conv(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "rows", "cols", "channels", "threads", "half", "out_half")),
        *((name, c_void_p) for name in ("x", "weight", "out", "dout", "dx", "dweight")),
    ]


class _SwiGLU(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("tokens", "width", "threads", "half")),
        *((name, c_void_p) for name in ("x", "out", "dout", "dx")),
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
    """`reference.recurrence` with the clamp of log_decay, and k = 1 - exp(log_decay) if None: [B, N, H, V]."""
    q, log_decay, v, k = _of_one_dtype(q, log_decay, v, k)
    problem = _problem(q, log_decay, v, k, grid, scan, scale)
    out = v.new_empty(v.shape)
    o = v.new_empty(v.shape if len(scan) > 1 else (0,), dtype=torch.float32)
    _run_forward(_Forward(problem, _tensor(out), o.data_ptr(), 0), q)
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
    q, log_decay, v, k = _of_one_dtype(q, log_decay, v, k)
    problem = _problem(q, log_decay, v, k, grid, scan, scale)
    dout = _channels_contiguous(dout if _is_half(dout) else dout.float())
    dq, dg, dv = (x.new_empty(x.shape, dtype=torch.float32) for x in (q, log_decay, v))
    dk = None if k is None else k.new_empty(k.shape, dtype=torch.float32)
    call = _Backward(problem, _tensor(dout), _is_half(dout))
    call.dq, call.ddecay, call.dv, call.dk = _tensor(dq), _tensor(dg), _tensor(dv), _tensor(dk)
    _run_backward(call, q)
    return dq, dg, dv, dk


def mixer_forward(
    projected: Tensor,
    gate_bias: Tensor,
    aug_weight: Tensor,
    num_heads: int,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """From the fused projection [B, N, 3 C] (q, logits, v, z) to the gated output [B, N, C].

    With `keep` the second result is the LayerNorm's input, float32 [B, N, C], which `mixer_backward` needs.
    """
    batch, tokens, width = projected.shape
    q, logits, v, z, problem, kept = _mixer(projected, gate_bias, aug_weight, num_heads, grid, scan)
    out = v.new_empty(v.shape)
    o = v.new_empty(v.shape if keep or len(scan) > 1 else (0,), dtype=torch.float32)
    _run_forward(_Forward(problem, _tensor(out), o.data_ptr(), keep), v)
    del kept
    shape = (batch, tokens, width // 3)
    return out.view(shape), o.view(shape) if keep else o.new_empty(0)


def mixer_backward(
    dy: Tensor,
    projected: Tensor,
    gate_bias: Tensor,
    aug_weight: Tensor,
    o: Tensor,
    num_heads: int,
    grid: tuple[int, int],
    scan: tuple[str, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of projected [B, N, 3 C], gate_bias [C] and aug_weight [C / 2], float32."""
    batch, tokens, width = projected.shape
    q, logits, v, z, problem, kept = _mixer(projected, gate_bias, aug_weight, num_heads, grid, scan)
    dy = (dy if _is_half(dy) else dy.float()).contiguous().view(v.shape)
    dprojected = projected.new_empty(projected.shape, dtype=torch.float32)
    call = _Backward(problem, _tensor(dy), _is_half(dy), o.data_ptr())
    call.dq, call.ddecay, call.dv, call.dz = map(_tensor, _split(dprojected, num_heads))
    blocks = _function("metala_backward_blocks", c_int64)(byref(problem))
    dbias = o.new_empty(batch * blocks, width // 3)
    daug = o.new_empty(batch, num_heads, len(scan), q.shape[3])
    scanned = o.new_empty(v.shape)
    call.dbias, call.daug, call.scanned = dbias.data_ptr(), daug.data_ptr(), scanned.data_ptr()
    _run_backward(call, o)
    del kept
    return dprojected, dbias.sum(0), daug.sum((0, 2)).flatten()


def conv_silu(x: Tensor, weight: Tensor, rows: int, cols: int, out_dtype: torch.dtype) -> Tensor:
    """SiLU of a depthwise 3x3 convolution, weight [C, 1, 3, 3]: [B, N, C] -> [B, N, C] in `out_dtype`."""
    x = x.contiguous()
    out = x.new_empty(x.shape, dtype=out_dtype)
    taps = _taps(weight)
    call = _conv(x, taps, rows, cols, out_dtype)
    call.out = out.data_ptr()
    _check(_function("metala_conv")(byref(call)))
    return out


def conv_silu_backward(dout: Tensor, x: Tensor, weight: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Gradients of x, in its dtype, and of weight, float32."""
    x, dout = x.contiguous(), dout.contiguous()
    taps = _taps(weight)
    dx = x.new_empty(x.shape)
    dtaps = taps.new_empty(x.shape[0], *taps.shape)
    call = _conv(x, taps, rows, cols, dout.dtype)
    call.dout, call.dx, call.dweight = dout.data_ptr(), dx.data_ptr(), dtaps.data_ptr()
    _check(_function("metala_conv_backward")(byref(call)))
    return dx, dtaps.sum(0).t().reshape(weight.shape)


def swiglu(x: Tensor) -> Tensor:
    """SiLU(gate) * value of x = (gate, value): [..., 2 D] -> [..., D]."""
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    call = _SwiGLU(out.numel() // max(out.shape[-1], 1), out.shape[-1], native.num_threads(), _is_half(x))
    call.x, call.out = x.data_ptr(), out.data_ptr()
    _check(_function("metala_swiglu")(byref(call)))
    return out


def swiglu_backward(dout: Tensor, x: Tensor) -> Tensor:
    """Gradient of x, in its dtype."""
    x, dout = x.contiguous(), dout.to(x.dtype).contiguous()
    dx = x.new_empty(x.shape)
    call = _SwiGLU(dout.numel() // max(dout.shape[-1], 1), dout.shape[-1], native.num_threads(), _is_half(x))
    call.x, call.dout, call.dx = x.data_ptr(), dout.data_ptr(), dx.data_ptr()
    _check(_function("metala_swiglu_backward")(byref(call)))
    return dx


def swiglu_mlp(x: Tensor, weight_in: Tensor, weight_out: Tensor) -> Tensor:
    """swiglu(x weight_in^T) weight_out^T, [..., C] -> [..., C'], in tiles of tokens.

    The hidden channels of one tile stay in the cache, and no allocation is so large that the system hands out and takes
    back its pages in every call: at 16384 tokens that costs a quarter of the whole model.
    """
    tokens = x.reshape(-1, x.shape[-1])
    count = tokens.shape[0]
    hidden = weight_in.shape[0]
    tiles = max(1, -(-count * hidden * x.element_size() // MLP_TILE_BYTES))
    size = -(-count // tiles)
    out = x.new_empty(count, weight_out.shape[0])
    inner = x.new_empty(size, hidden)
    for begin in range(0, count, size):
        end = min(begin + size, count)
        torch.mm(tokens[begin:end], weight_in.t(), out=inner[: end - begin])
        torch.mm(swiglu(inner[: end - begin]), weight_out.t(), out=out[begin:end])
    return out.view(*x.shape[:-1], weight_out.shape[0])


def _function(name: str, result: type = ctypes.c_int):
    function = getattr(native.library(), name)
    function.restype = result
    return function


def _check(status: int) -> None:
    if status:
        raise MemoryError("the C kernel found no memory for its scratch buffers")


def _is_half(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def _of_one_dtype(*tensors: Tensor | None) -> list[Tensor | None]:
    """bfloat16 if all are, else float32, with channels side by side."""
    half = all(x is None or _is_half(x) for x in tensors)
    dtype = torch.bfloat16 if half else torch.float32
    return [None if x is None else _channels_contiguous(x.to(dtype)) for x in tensors]


def _channels_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _tensor(x: Tensor | None) -> _Tensor:
    return _Tensor() if x is None else _Tensor(x.data_ptr(), *x.stride()[:3])


def _problem(
    q: Tensor, decay: Tensor, v: Tensor, k: Tensor | None, grid: tuple[int, int], scan: tuple[str, ...], scale: float
) -> _Problem:
    batch, _, heads, key = q.shape
    orders = (c_int64 * 4)(*(SCAN_ORDERS.index(order) for order in scan))
    problem = _Problem(batch, heads, *grid, key, v.shape[3], len(scan), orders, native.num_threads(), _is_half(q))
    problem.scale, problem.eps = scale, EPS
    problem.q, problem.decay, problem.k, problem.v = _tensor(q), _tensor(decay), _tensor(k), _tensor(v)
    return problem


def _split(projected: Tensor, num_heads: int) -> list[Tensor]:
    """[B, N, 3 C] -> views q, logits [B, N, H, K] and v, z [B, N, H, V]."""
    dim = projected.shape[2] // 3
    parts = projected.split([dim // 2, dim // 2, dim, dim], dim=2)
    return [part.unflatten(2, (num_heads, -1)) for part in parts]


def _mixer(projected, gate_bias, aug_weight, num_heads, grid, scan) -> tuple:
    projected = (projected if _is_half(projected) else projected.float()).contiguous()
    q, logits, v, z = _split(projected, num_heads)
    problem = _problem(q, logits, v, None, grid, scan, q.shape[3] ** -0.5)
    gate_bias, aug_weight = gate_bias.float().contiguous(), aug_weight.float().contiguous()
    problem.logits = problem.gated = 1
    problem.root, problem.z = 1 / GATE_TEMPERATURE, _tensor(z)
    problem.gate_bias, problem.aug_weight = gate_bias.data_ptr(), aug_weight.data_ptr()
    return q, logits, v, z, problem, (gate_bias, aug_weight)  # the last: to be kept alive during the call


def _run_forward(call: _Forward, like: Tensor) -> None:
    size = _function("metala_forward_states", c_int64)(byref(call.p))
    states = like.new_empty(size, dtype=torch.float32)
    call.states = states.data_ptr()
    _check(_function("metala_forward")(byref(call)))


def _run_backward(call: _Backward, like: Tensor) -> None:
    size = _function("metala_backward_states", c_int64)(byref(call.p))
    states = like.new_empty(size, dtype=torch.float32)
    call.states = states.data_ptr()
    _check(_function("metala_backward")(byref(call)))


def _taps(weight: Tensor) -> Tensor:
    """[C, 1, 3, 3] -> float32 [9, C]."""
    return weight.detach().float().reshape(-1, 9).t().contiguous()


def _conv(x: Tensor, taps: Tensor, rows: int, cols: int, out_dtype: torch.dtype) -> _Conv:
    call = _Conv(x.shape[0], rows, cols, x.shape[2], native.num_threads(), _is_half(x), out_dtype == torch.bfloat16)
    call.x, call.weight = x.data_ptr(), taps.data_ptr()
    return call
