"""The C kernels around the matrix products, on torch tensors: the mirror of the structures in tokens.c.

Shapes: B batch, N tokens (rows * cols, row-major), C channels. Inputs are float32 or bfloat16.
"""

from ctypes import Structure, byref, c_float, c_int64, c_void_p

import torch
from torch import Tensor

from . import native
from .cpu_calls import channels_contiguous, check, function, is_half


class _Conv(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "rows", "cols", "channels", "threads", "stride")),
        *((name, c_int64) for name in ("first", "last", "half", "out_half")),
        *((name, c_void_p) for name in ("x", "value", "weight", "out", "dout", "dx", "dvalue", "dweight")),
        *((name, c_void_p) for name in ("norm_weight", "norm_bias")),
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


def conv_silu(x: Tensor, weight: Tensor, rows: int, cols: int, out_dtype: torch.dtype) -> Tensor:
    """SiLU of a depthwise 3x3 convolution, weight [C, 1, 3, 3]: [B, N, C] -> [B, N, C] in `out_dtype`."""
    out = x.new_empty(x.shape, dtype=out_dtype)
    conv_silu_into(x, weight, (rows, cols), out)
    return out


def conv_silu_into(
    x: Tensor,
    weight: Tensor,
    grid: tuple[int, int],
    out: Tensor,
    norm: tuple[Tensor, Tensor] | None = None,
    eps: float = 0.0,
) -> None:
    """Writes `conv_silu` to `out` [B, N, C], contiguous, in its dtype; `norm`: (weight, bias) of a LayerNorm first."""
    x, taps = x.contiguous(), _taps(weight)
    call = _conv(x, taps, *grid, out.dtype)
    call.out = out.data_ptr()
    if norm is not None:
        weight, bias = (parameter.float().contiguous() for parameter in norm)  # kept alive during the call
        call.norm_weight, call.norm_bias, call.eps = weight.data_ptr(), bias.data_ptr(), eps
    check(function("metala_conv")(byref(call)))


def conv_silu_backward(dout: Tensor, x: Tensor, weight: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Gradients of x, in its dtype, and of weight, float32."""
    return _conv_backward(dout, x, weight, rows, cols, gated=False)


def conv_swiglu(x: Tensor, weight: Tensor, rows: int, cols: int) -> Tensor:
    """`conv_silu` of the gate, times the value, x = (gate, value): [B, N, 2 D] -> [B, N, D], weight [D, 1, 3, 3]."""
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    conv_swiglu_into(x, weight, (rows, cols), out)
    return out


def conv_swiglu_into(
    x: Tensor, weight: Tensor, grid: tuple[int, int], out: Tensor, rows: tuple[int, int] | None = None
) -> None:
    """Writes `conv_swiglu` of x to `out`, both contiguous and of one dtype; `rows`: of those of all images only."""
    taps = _taps(weight)
    call = _conv(x, taps, *grid, out.dtype)
    if rows is not None:
        call.first, call.last = rows
    call.value, call.out = x[..., call.channels :].data_ptr(), out.data_ptr()
    check(function("metala_conv")(byref(call)))


def conv_swiglu_backward(dout: Tensor, x: Tensor, weight: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """Gradients of x, in its dtype, and of weight, float32."""
    return _conv_backward(dout.to(x.dtype), x, weight, rows, cols, gated=True)


def swiglu(x: Tensor) -> Tensor:
    """SiLU(gate) * value of x = (gate, value): [..., 2 D] -> [..., D]."""
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    swiglu_into(x, out)
    return out


def swiglu_into(x: Tensor, out: Tensor) -> None:
    """Writes `swiglu` of x [..., 2 D] to `out` [..., D], both contiguous and of one dtype."""
    call = _SwiGLU(out.numel() // max(out.shape[-1], 1), out.shape[-1], native.num_threads(), is_half(x))
    call.x, call.out = x.data_ptr(), out.data_ptr()
    check(function("metala_swiglu")(byref(call)))


def swiglu_backward(dout: Tensor, x: Tensor) -> Tensor:
    """Gradient of x, in its dtype."""
    x, dout = x.contiguous(), dout.to(x.dtype).contiguous()
    dx = x.new_empty(x.shape)
    call = _SwiGLU(dout.numel() // max(dout.shape[-1], 1), dout.shape[-1], native.num_threads(), is_half(x))
    call.x, call.dout, call.dx = x.data_ptr(), dout.data_ptr(), dx.data_ptr()
    check(function("metala_swiglu_backward")(byref(call)))
    return dx


def patches(x: Tensor, height: int, width: int) -> Tensor:
    """[B, chans, H, W] -> [B, rows, cols, chans * height * width], with zeros beyond the image."""
    x = channels_contiguous(x)
    batch, chans, *sides = x.shape
    grid = -(-sides[0] // height), -(-sides[1] // width)
    out = x.new_empty(batch, *grid, chans * height * width)
    call = _Patches(batch, chans, *sides, height, width, native.num_threads(), x.element_size(), *x.stride()[:3])
    call.x, call.out = x.data_ptr(), out.data_ptr()
    check(function("metala_patches")(byref(call)))
    return out


def _taps(weight: Tensor) -> Tensor:
    return weight.detach().float().contiguous()


def _conv(x: Tensor, taps: Tensor, rows: int, cols: int, out_dtype: torch.dtype) -> _Conv:
    """The call of a convolution of the first channels of x [B, N, _], contiguous."""
    sizes = x.shape[0], rows, cols, taps.shape[0], native.num_threads(), x.shape[2], 0, x.shape[0] * rows
    call = _Conv(*sizes, is_half(x), out_dtype == torch.bfloat16)
    call.x, call.weight = x.data_ptr(), taps.data_ptr()
    return call


def _conv_backward(dout: Tensor, x: Tensor, weight: Tensor, rows: int, cols: int, gated: bool) -> tuple[Tensor, Tensor]:
    x, dout, taps = x.contiguous(), dout.contiguous(), _taps(weight)
    dx, dtaps = x.new_empty(x.shape), taps.new_empty(x.shape[0], 9, taps.shape[0])
    call = _conv(x, taps, rows, cols, dout.dtype)
    if gated:
        call.value, call.dvalue = (pair[..., call.channels :].data_ptr() for pair in (x, dx))
    call.dout, call.dx, call.dweight = dout.data_ptr(), dx.data_ptr(), dtaps.data_ptr()
    check(function("metala_conv_backward")(byref(call)))
    return dx, dtaps.sum(0).t().contiguous().view(weight.shape)
