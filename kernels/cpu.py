"""The C kernels on torch tensors: the mirror of the structures in scan.h, scan.c, scan_backward.c and tokens.c.

Called inside registered operators, where autograd cannot see them. Inputs are float32, or bfloat16 throughout; state
and sums are float32, and so is every gradient, which the operators cast to what their caller expects.

Shapes: B batch, N tokens (rows * cols, row-major), H heads, K key channels, V value channels, C = H * V.
"""

import ctypes
import threading
from ctypes import Structure, byref, c_float, c_int64, c_void_p
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from . import native
from .linear import linear
from .reference import GATE_TEMPERATURE, NORM_EPS, SCAN_ORDERS

MLP_TILE = 1024  # tokens that go through an MLP at a time: fewer starve the products, more leave the cache
VALUE_BLOCK = 16  # value channels that a thread takes at least
BAND_BYTES = 64 << 20  # of hidden channels that an MLP keeps for its second product
SCRATCH_BYTES = 128 << 20  # at most, of each kind of scratch and each thread that calls, kept between calls
MAPPED_BYTES = 32 << 20  # from here on glibc's malloc takes fresh pages from the system in every call


class _Tensor(Structure):
    _fields_ = [("data", c_void_p), ("batch", c_int64), ("token", c_int64), ("head", c_int64)]


class _Problem(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "rows", "cols", "key", "value", "orders")),
        ("order", c_int64 * 4),
        *((name, c_int64) for name in ("share", "threads", "half", "logits", "gated")),
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
        *((name, c_void_p) for name in ("x", "weight", "out", "dout", "dx", "dweight", "norm_weight", "norm_bias")),
        ("eps", c_float),
    ]


class _SwiGLU(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("tokens", "width", "threads", "half")),
        *((name, c_void_p) for name in ("x", "out", "dout", "dx")),
    ]


class _Patches(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "chans", "height", "width", "patch_height", "patch_width")),
        *((name, c_int64) for name in ("threads", "bytes", "image", "chan", "line")),
        ("x", c_void_p),
        ("out", c_void_p),
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
    _run_forward(problem, out, _tensor(out), None)
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
    dv = v.new_empty(v.shape, dtype=torch.float32)
    batch, tokens, heads, key = q.shape
    dq, dg, dk = (
        None if x is None else x.new_empty(batch, tokens, heads * problem.share, key, dtype=torch.float32)
        for x in (q, log_decay, k)
    )
    call = _Backward(problem, _tensor(dout), _is_half(dout))
    call.dq, call.ddecay, call.dv, call.dk = _tensor(dq), _tensor(dg), _tensor(dv), _tensor(dk)
    _run_backward(call)
    dq, dg, dk = (None if x is None else _sum_blocks(x, problem.share) for x in (dq, dg, dk))
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
    problem, projected, *parameters = _mixer(projected, gate_bias, aug_weight, num_heads, grid, scan)
    batch, tokens, width = projected.shape
    shape = (batch, tokens, width // 3)
    out = projected.new_empty(shape)
    o = projected.new_empty(shape if keep else (0,), dtype=torch.float32)
    _run_forward(problem, out, _by_head(out, num_heads), o if keep else None)
    return out, o


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
    problem, projected, *parameters = _mixer(projected, gate_bias, aug_weight, num_heads, grid, scan)
    batch, tokens, width = projected.shape
    dim = width // 3
    dy = (dy if _is_half(dy) else dy.float()).contiguous()
    dprojected = projected.new_empty(projected.shape, dtype=torch.float32)
    call = _Backward(problem, _by_head(dy, num_heads), _is_half(dy), o.data_ptr())
    call.dq, call.ddecay, call.dv, call.dz = _parts(dprojected, num_heads)
    blocks = None  # dq and ddecay for each block of V
    if problem.share > 1:
        key = dim // 2 // num_heads
        blocks = o.new_empty(2, batch, tokens, num_heads * problem.share, key)
        call.dq, call.ddecay = map(_tensor, blocks)
    dbias = o.new_empty(batch * _function("metala_backward_blocks", c_int64)(byref(problem)), dim)
    daug = o.new_empty(batch, num_heads, problem.share, len(scan), dim // 2 // num_heads)
    scanned = o.new_empty(batch, tokens, dim)
    call.dbias, call.daug, call.scanned = dbias.data_ptr(), daug.data_ptr(), scanned.data_ptr()
    _run_backward(call)
    if blocks is not None:
        summed = _sum_blocks(blocks, problem.share).flatten(3)
        dprojected[..., :dim] = summed.movedim(0, -2).flatten(2)
    return dprojected, dbias.sum(0), daug.sum((0, 2, 3)).flatten()


def conv_silu(x: Tensor, weight: Tensor, rows: int, cols: int, out_dtype: torch.dtype) -> Tensor:
    """SiLU of a depthwise 3x3 convolution, weight [C, 1, 3, 3]: [B, N, C] -> [B, N, C] in `out_dtype`."""
    out = x.new_empty(x.shape, dtype=out_dtype)
    _conv_silu_into(x, weight, (rows, cols), out)
    return out


def _conv_silu_into(
    x: Tensor,
    weight: Tensor,
    grid: tuple[int, int],
    out: Tensor,
    norm: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> None:
    """`norm`: weight and bias of a LayerNorm of x that comes first."""
    x, taps = x.contiguous(), _taps(weight)
    call = _conv(x, taps, *grid, out.dtype)
    call.out = out.data_ptr()
    if norm is not None:
        norm = [parameter.float().contiguous() for parameter in norm]  # kept alive during the call
        call.norm_weight, call.norm_bias, call.eps = norm[0].data_ptr(), norm[1].data_ptr(), eps
    _check(_function("metala_conv")(byref(call)))


def conv_silu_backward(dout: Tensor, x: Tensor, weight: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Gradients of x, in its dtype, and of weight, float32."""
    x, dout = x.contiguous(), dout.contiguous()
    taps = _taps(weight)
    dx = x.new_empty(x.shape)
    dtaps = taps.new_empty(x.shape[0], 9, x.shape[2])
    call = _conv(x, taps, rows, cols, dout.dtype)
    call.dout, call.dx, call.dweight = dout.data_ptr(), dx.data_ptr(), dtaps.data_ptr()
    _check(_function("metala_conv_backward")(byref(call)))
    return dx, dtaps.sum(0).t().contiguous().view(weight.shape)


def swiglu(x: Tensor) -> Tensor:
    """SiLU(gate) * value of x = (gate, value): [..., 2 D] -> [..., D]."""
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    _swiglu_into(x, out)
    return out


def _swiglu_into(x: Tensor, out: Tensor) -> None:
    call = _SwiGLU(out.numel() // max(out.shape[-1], 1), out.shape[-1], native.num_threads(), _is_half(x))
    call.x, call.out = x.data_ptr(), out.data_ptr()
    _check(_function("metala_swiglu")(byref(call)))


def swiglu_backward(dout: Tensor, x: Tensor) -> Tensor:
    """Gradient of x, in its dtype."""
    x, dout = x.contiguous(), dout.to(x.dtype).contiguous()
    dx = x.new_empty(x.shape)
    call = _SwiGLU(dout.numel() // max(dout.shape[-1], 1), dout.shape[-1], native.num_threads(), _is_half(x))
    call.x, call.dout, call.dx = x.data_ptr(), dout.data_ptr(), dx.data_ptr()
    _check(_function("metala_swiglu_backward")(byref(call)))
    return dx


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
) -> Tensor:
    """swiglu(x weight_in^T) weight_out^T, [..., C] -> [..., C'], in tiles of tokens.

    With a norm it is taken of LayerNorm(x) and added to x, whose dtype may then be another one than the weights have.

    The hidden channels of one tile stay in the cache on their way through the activation, and no allocation is so large
    that the system hands out and takes back its pages in every call: at 16384 tokens that costs a quarter of the whole
    model. The second product takes the tiles of a band at once, since it could not write into a part of the result.
    """
    tokens = x.reshape(-1, x.shape[-1])
    count, width = tokens.shape[0], weight_out.shape[1]
    size = mlp_tile(count)
    band = size * max(1, BAND_BYTES // (size * width * weight_in.element_size()))
    hidden = _scratch("hidden", min(band, count) * width, weight_in.dtype).view(-1, width)
    results = []
    for start in range(0, max(count, 1), band):
        residual = tokens[start : start + band]
        for begin in range(0, residual.shape[0], size):
            tile = residual[begin : begin + size]
            if norm_weight is not None:
                tile = F.layer_norm(tile, tile.shape[1:], norm_weight, norm_bias, eps).to(weight_in.dtype)
            _swiglu_into(linear(tile, weight_in), hidden[begin : begin + tile.shape[0]])
        inner = hidden[: residual.shape[0]]
        results.append(linear(inner, weight_out) if norm_weight is None else _add(residual, inner, weight_out))
    out = results[0] if len(results) == 1 else torch.cat(results)
    return out.view(*x.shape[:-1], weight_out.shape[0])


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
) -> Tensor:
    """x + mixer(conv_silu(LayerNorm(x)) weight_in^T) weight_out^T, [B, N, C] -> [B, N, C] in the dtype of `x`.

    In between in that of the weights.
    """
    dtype = weight_in.dtype
    batch, tokens, dim = x.shape
    inner = _scratch("inner", batch * tokens * dim, dtype).view(x.shape)  # the convolution's output, then the gated one
    _conv_silu_into(x, conv_weight, grid, inner, (norm_weight, norm_bias), eps)
    projected = _projected(inner, weight_in)
    problem, projected, *parameters = _mixer(projected, gate_bias, aug_weight, num_heads, grid, scan)
    _run_forward(problem, inner, _by_head(inner, num_heads), None)
    return _add(x, inner, weight_out)


def _projected(x: Tensor, weight: Tensor) -> Tensor:
    """x weight^T, [B, N, C] -> [B, N, C'], in kept memory where fresh pages would cost more than torch.mm does."""
    shape = (*x.shape[:-1], weight.shape[0])
    size = prod(shape)
    if not MAPPED_BYTES <= size * x.element_size() <= SCRATCH_BYTES:
        return linear(x, weight)
    out = _scratch("projected", size, x.dtype).view(shape)
    torch.mm(x.flatten(0, 1), weight.t(), out=out.flatten(0, 1))
    return out


def _add(residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """residual + x weight^T, in the dtype of the residual."""
    if x.dtype == residual.dtype:
        return linear(x, weight, residual)
    return residual.contiguous() + linear(x, weight)


def patches(x: Tensor, height: int, width: int) -> Tensor:
    """[B, chans, H, W] -> [B, rows, cols, chans * height * width], with zeros beyond the image."""
    x = _channels_contiguous(x)
    batch, chans, *sides = x.shape
    grid = -(-sides[0] // height), -(-sides[1] // width)
    out = x.new_empty(batch, *grid, chans * height * width)
    call = _Patches(batch, chans, *sides, height, width, native.num_threads(), x.element_size(), *x.stride()[:3])
    call.x, call.out = x.data_ptr(), out.data_ptr()
    _check(_function("metala_patches")(byref(call)))
    return out


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


def _by_head(x: Tensor, num_heads: int) -> _Tensor:
    """[B, N, H * X], contiguous, as [B, N, H, X]."""
    _, tokens, dim = x.shape
    return _Tensor(x.data_ptr(), tokens * dim, dim, dim // num_heads)


def _parts(projected: Tensor, num_heads: int) -> list[_Tensor]:
    """[B, N, 3 C], contiguous -> q, logits [B, N, H, K] and v, z [B, N, H, V]."""
    _, tokens, width = projected.shape
    start, size, half = projected.data_ptr(), projected.element_size(), width // 6
    key, value = half // num_heads, 2 * half // num_heads
    offsets = ((0, key), (half, key), (2 * half, value), (4 * half, value))
    return [_Tensor(start + at * size, tokens * width, width, head) for at, head in offsets]


def _problem(
    q: Tensor, decay: Tensor, v: Tensor, k: Tensor | None, grid: tuple[int, int], scan: tuple[str, ...], scale: float
) -> _Problem:
    batch, _, heads, key = q.shape
    orders = (c_int64 * 4)(*map(SCAN_ORDERS.index, scan))
    problem = _Problem(batch, heads, *grid, key, v.shape[3], len(scan), orders)
    _divide(problem, native.num_threads())
    problem.half = _is_half(q)
    problem.scale, problem.eps = scale, NORM_EPS
    problem.q, problem.decay, problem.k, problem.v = _tensor(q), _tensor(decay), _tensor(k), _tensor(v)
    return problem


def _mixer(projected, gate_bias, aug_weight, num_heads, grid, scan) -> tuple[_Problem, Tensor, Tensor, Tensor]:
    """The problem of a gated scan, and the tensors it points into: to be kept alive during the call."""
    projected = (projected if _is_half(projected) else projected.float()).contiguous()
    gate_bias, aug_weight = gate_bias.float().contiguous(), aug_weight.float().contiguous()
    half = projected.shape[2] // 6
    key, value = half // num_heads, 2 * half // num_heads
    orders = (c_int64 * 4)(*map(SCAN_ORDERS.index, scan))
    problem = _Problem(projected.shape[0], num_heads, *grid, key, value, len(scan), orders)
    _divide(problem, native.num_threads())
    problem.half, problem.logits, problem.gated = _is_half(projected), 1, 1
    problem.scale, problem.root, problem.eps = key**-0.5, 1 / GATE_TEMPERATURE, NORM_EPS
    problem.q, problem.decay, problem.v, problem.z = _parts(projected, num_heads)
    problem.gate_bias, problem.aug_weight = gate_bias.data_ptr(), aug_weight.data_ptr()
    return problem, projected, gate_bias, aug_weight


def _divide(problem: _Problem, threads: int) -> None:
    """Cuts V into blocks while there are more threads than tasks; every block computes the gates of its head anew."""
    problem.threads, problem.share = threads, 1
    at_once = min(problem.orders, 2)
    while problem.batch * problem.heads * at_once < threads and problem.value % (2 * VALUE_BLOCK) == 0:
        problem.share, problem.heads, problem.value = 2 * problem.share, 2 * problem.heads, problem.value // 2


def _sum_blocks(x: Tensor, share: int) -> Tensor:
    """[..., H * share, K] -> [..., H, K]."""
    return x if share == 1 else x.unflatten(-2, (-1, share)).sum(-2)


class _Scratch(threading.local):
    """Memory for one call at a time, kept by each thread: fresh pages in every call would cost more than their use."""

    def __init__(self):
        self.memory: dict[str, Tensor] = {}


_kept = _Scratch()


def _scratch(kind: str, size: int, dtype: torch.dtype) -> Tensor:
    """`size` uninitialised elements, valid until the next call for this kind in this thread."""
    count = size * dtype.itemsize
    memory = _kept.memory.get(kind)
    if memory is None or memory.numel() < count:
        memory = torch.empty(count, dtype=torch.uint8, device="cpu")
        if count <= SCRATCH_BYTES:
            _kept.memory[kind] = memory
    return memory[:count].view(dtype)


def _run_forward(problem: _Problem, out: Tensor, layout: _Tensor, o: Tensor | None) -> None:
    """`o` takes the sums over the orders if they are to be kept; until they are complete they need a place anyhow."""
    states = _function("metala_forward_states", c_int64)(byref(problem))
    in_one_go = problem.orders == 1 and problem.share == 1
    summed = 0 if o is not None or out.dtype == torch.float32 or in_one_go else out.numel()
    scratch = _scratch("states", states + summed, torch.float32)
    place = out if out.dtype == torch.float32 else scratch[states:]
    call = _Forward(problem, layout, (place if o is None else o).data_ptr(), o is not None, scratch.data_ptr())
    _check(_function("metala_forward")(byref(call)))


def _run_backward(call: _Backward) -> None:
    states = _function("metala_backward_states", c_int64)(byref(call.p))
    scratch = _scratch("states", states, torch.float32)
    call.states = scratch.data_ptr()
    _check(_function("metala_backward")(byref(call)))


def _taps(weight: Tensor) -> Tensor:
    return weight.detach().float().contiguous()


def _conv(x: Tensor, taps: Tensor, rows: int, cols: int, out_dtype: torch.dtype) -> _Conv:
    call = _Conv(x.shape[0], rows, cols, x.shape[2], native.num_threads(), _is_half(x), out_dtype == torch.bfloat16)
    call.x, call.weight = x.data_ptr(), taps.data_ptr()
    return call
