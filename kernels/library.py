"""The operators that have kernels, registered with torch, and their autograd.

An operator with gradients is a pair `*_forward`, `*_backward`. An autograd.Function outside of them joins the two,
since autograd cannot be called inside an operator. Scans and mixer have one schema for CPU (C) and CUDA (Triton); the
others are for the CPU. All are opaque to compilers, which take shapes from a fake. `ops.py`, and not this file, chooses
the backend, checks the arguments and sets the dtypes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import cpu, cpu_blocks, cpu_tokens, unfused
from .backends import without_autocast
from .chunked import chunked

LIBRARY = torch.library.Library("metala", "DEF")

_PROBLEM = "SymInt rows, SymInt cols, str scan"  # `scan` is its orders joined by commas
LIBRARY.define(f"scan_forward(Tensor q, Tensor log_decay, Tensor v, Tensor? k, {_PROBLEM}, float scale) -> Tensor")
LIBRARY.define(
    f"scan_backward(Tensor dout, Tensor q, Tensor log_decay, Tensor v, Tensor? k, {_PROBLEM}, float scale)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_MIXER = f"Tensor projected, Tensor gate_bias, Tensor aug_weight, int num_heads, {_PROBLEM}, Scalar decay_scale"
LIBRARY.define(f"mixer_forward({_MIXER}, bool keep) -> (Tensor, Tensor)")
LIBRARY.define(f"mixer_backward(Tensor dy, Tensor o, {_MIXER}) -> (Tensor, Tensor, Tensor)")
_CONV = "Tensor x, Tensor weight, SymInt rows, SymInt cols"
LIBRARY.define(f"conv_silu_forward({_CONV}, ScalarType out_dtype) -> Tensor")
LIBRARY.define(f"conv_silu_backward(Tensor dout, {_CONV}) -> (Tensor, Tensor)")
LIBRARY.define(f"conv_swiglu_forward({_CONV}) -> Tensor")
LIBRARY.define(f"conv_swiglu_backward(Tensor dout, {_CONV}) -> (Tensor, Tensor)")
LIBRARY.define("patches_forward(Tensor x, int height, int width) -> Tensor")
LIBRARY.define("swiglu_forward(Tensor x) -> Tensor")
LIBRARY.define("swiglu_backward(Tensor dout, Tensor x) -> Tensor")
LIBRARY.define(
    "swiglu_mlp_forward(Tensor x, Tensor weight_in, Tensor weight_out, Tensor? norm_weight, Tensor? norm_bias,"
    " float eps, Tensor? conv_weight, SymInt rows, SymInt cols) -> Tensor"
)
LIBRARY.define(
    "add_mixer_forward(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor conv_weight, Tensor weight_in,"
    f" Tensor gate_bias, Tensor aug_weight, Tensor weight_out, int num_heads, {_PROBLEM}, Scalar decay_scale,"
    " Tensor? bias_in) -> Tensor"
)


def _kernels(x: Tensor):
    """The module that has the kernels of a device."""
    if x.device.type == "cpu":
        return cpu
    from . import gpu  # needs Triton

    return gpu


def _empty_like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)  # never torch.empty_like, which copies permuted strides


def _is_recorded() -> bool:
    """Whether the backward pass that is running is differentiated itself (create_graph) or batched (torch.func)."""
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()


def _composed_gradients(compose: Callable[..., Tensor], ctx, dout: Tensor, *tensors: Tensor | None) -> list:
    """Gradients of `tensors`, the first arguments of an operator with the composed form `compose`, in their own graph.

    The kernels of a backward pass have no derivative, so for a second derivative the forward pass is composed anew.
    """
    record = torch.is_grad_enabled()
    with torch.enable_grad(), without_autocast(dout.device):
        inputs = [None if x is None else x.view_as(x) for x in tensors]  # a tensor given twice has two gradients
        wanted = [x for x, needed in zip(inputs, ctx.needs_input_grad) if needed and x is not None]
        found = iter(torch.autograd.grad(compose(*inputs), wanted, dout, create_graph=record, materialize_grads=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[: len(tensors)]]


# --- gated linear attention


def _scan_forward(q, log_decay, v, k, rows, cols, scan, scale):
    return _kernels(q).forward(q, log_decay, v, k, (rows, cols), tuple(scan.split(",")), scale).to(v.dtype)


def _scan_backward(dout, q, log_decay, v, k, rows, cols, scan, scale):
    run = _kernels(q).backward
    *gradients, dk = run(dout, q, log_decay, v, k, (rows, cols), tuple(scan.split(",")), scale)
    dq, dg, dv = (dx.to(x.dtype) for dx, x in zip(gradients, (q, log_decay, v)))
    return dq, dg, dv, q.new_empty(0) if k is None else dk.to(k.dtype)


class Scan(torch.autograd.Function):
    """`scan_forward`, with gradients; arguments as its schema."""

    @staticmethod
    def forward(ctx, q, log_decay, v, k, *problem):
        """[B, N, H, V]."""
        ctx.save_for_backward(q, log_decay, v, k)
        ctx.problem = problem
        return torch.ops.metala.scan_forward(q, log_decay, v, k, *problem)

    @staticmethod
    def backward(ctx, dout):
        """Gradients of q, log_decay, v and k."""
        q, log_decay, v, k = ctx.saved_tensors
        if _is_recorded():
            rows, cols, scan, scale = ctx.problem

            def compose(*inputs):
                return unfused.attention(chunked, *inputs, (rows, cols), tuple(scan.split(",")), scale)

            return *_composed_gradients(compose, ctx, dout, q, log_decay, v, k), None, None, None, None
        dq, dg, dv, dk = torch.ops.metala.scan_backward(dout, q, log_decay, v, k, *ctx.problem)
        return dq, dg, dv, None if k is None else dk, None, None, None, None


# --- from the fused projection to the gated output of a MetaLA layer


def _mixer_forward(projected, gate_bias, aug_weight, num_heads, rows, cols, scan, decay_scale, keep):
    run = _kernels(projected).mixer_forward
    y, o = run(projected, gate_bias, aug_weight, num_heads, (rows, cols), tuple(scan.split(",")), keep, decay_scale)
    return y.to(projected.dtype), o


def _mixer_backward(dy, o, projected, gate_bias, aug_weight, num_heads, rows, cols, scan, decay_scale):
    run = _kernels(projected).mixer_backward
    parameters = (projected, gate_bias, aug_weight)
    gradients = run(dy, *parameters, o, num_heads, (rows, cols), tuple(scan.split(",")), decay_scale)
    return tuple(dx.to(x.dtype) for dx, x in zip(gradients, parameters))


class Mixer(torch.autograd.Function):
    """`mixer_forward`, with gradients; arguments as its schema, less `keep`."""

    @staticmethod
    def forward(ctx, projected, gate_bias, aug_weight, *problem):
        """[B, N, C]."""
        y, o = torch.ops.metala.mixer_forward(projected, gate_bias, aug_weight, *problem, True)
        ctx.save_for_backward(projected, gate_bias, aug_weight, o)
        ctx.problem = problem
        return y

    @staticmethod
    def backward(ctx, dy):
        """Gradients of projected, gate_bias and aug_weight."""
        projected, gate_bias, aug_weight, o = ctx.saved_tensors
        if _is_recorded():
            num_heads, rows, cols, scan, decay_scale = ctx.problem

            def compose(*inputs):
                return unfused.mixer(chunked, *inputs, num_heads, (rows, cols), tuple(scan.split(",")), decay_scale)

            return *_composed_gradients(compose, ctx, dy, projected, gate_bias, aug_weight), *[None] * 5
        gradients = torch.ops.metala.mixer_backward(dy, o, projected, gate_bias, aug_weight, *ctx.problem)
        return *gradients, *[None] * 5


# --- element-wise work around the matrix products; on CUDA ops.py composes it of torch's own operators


def _conv_silu_forward(x, weight, rows, cols, out_dtype):
    return cpu_tokens.conv_silu(x, weight, rows, cols, out_dtype)


def _conv_silu_backward(dout, x, weight, rows, cols):
    dx, dweight = cpu_tokens.conv_silu_backward(dout, x, weight, rows, cols)
    return dx, dweight.to(weight.dtype)


class ConvSiLU(torch.autograd.Function):
    """`conv_silu_forward`, with gradients; arguments as its schema."""

    @staticmethod
    def forward(ctx, x, weight, rows, cols, out_dtype):
        """[B, N, C]."""
        ctx.save_for_backward(x, weight)
        ctx.grid = rows, cols
        return torch.ops.metala.conv_silu_forward(x, weight, rows, cols, out_dtype)

    @staticmethod
    def backward(ctx, dout):
        """Gradients of x and weight."""
        if _is_recorded():

            def compose(x, weight):  # the kernel computes in float32
                return unfused.conv_silu(x.float(), weight.float(), *ctx.grid).to(dout.dtype)

            return *_composed_gradients(compose, ctx, dout, *ctx.saved_tensors), None, None, None
        return *torch.ops.metala.conv_silu_backward(dout, *ctx.saved_tensors, *ctx.grid), None, None, None


def _conv_swiglu_backward(dout, x, weight, rows, cols):
    dx, dweight = cpu_tokens.conv_swiglu_backward(dout, x, weight, rows, cols)
    return dx, dweight.to(weight.dtype)


class ConvSwiGLU(torch.autograd.Function):
    """`conv_swiglu_forward`, with gradients; arguments as its schema."""

    @staticmethod
    def forward(ctx, x, weight, rows, cols):
        """[B, N, 2 D] -> [B, N, D]."""
        ctx.save_for_backward(x, weight)
        ctx.grid = rows, cols
        return torch.ops.metala.conv_swiglu_forward(x, weight, rows, cols)

    @staticmethod
    def backward(ctx, dout):
        """Gradients of x and weight."""
        if _is_recorded():

            def compose(x, weight):
                return unfused.conv_swiglu(x.float(), weight.float(), *ctx.grid).to(dout.dtype)

            return *_composed_gradients(compose, ctx, dout, *ctx.saved_tensors), None, None
        return *torch.ops.metala.conv_swiglu_backward(dout, *ctx.saved_tensors, *ctx.grid), None, None


class SwiGLU(torch.autograd.Function):
    """`swiglu_forward`, with gradients."""

    @staticmethod
    def forward(ctx, x):
        """[..., 2 D] -> [..., D]."""
        ctx.save_for_backward(x)
        return torch.ops.metala.swiglu_forward(x)

    @staticmethod
    def backward(ctx, dout):
        """Gradient of x."""
        if _is_recorded():
            (x,) = ctx.saved_tensors
            return _composed_gradients(lambda x: unfused.swiglu(x.float()).to(x.dtype), ctx, dout, x)[0]
        return torch.ops.metala.swiglu_backward(dout, *ctx.saved_tensors)


def swiglu_mlp_forward(x, weight_in, weight_out, norm_weight, norm_bias, eps, conv_weight, rows, cols):
    """What runs behind the operator of this name, arguments as its schema."""
    return cpu_blocks.swiglu_mlp(x, weight_in, weight_out, norm_weight, norm_bias, eps, conv_weight, (rows, cols))


def add_mixer_forward(x, *parameters_and_problem):
    """What runs behind the operator of this name, arguments as its schema."""
    *arguments, rows, cols, scan, decay_scale, bias_in = parameters_and_problem
    return cpu_blocks.add_mixer(x, *arguments, (rows, cols), tuple(scan.split(",")), decay_scale, bias_in)


for _name, _run in {
    "scan_forward": _scan_forward,
    "scan_backward": _scan_backward,
    "mixer_forward": _mixer_forward,
    "mixer_backward": _mixer_backward,
}.items():
    LIBRARY.impl(_name, _run, "CPU")
    LIBRARY.impl(_name, _run, "CUDA")
LIBRARY.impl("conv_silu_forward", _conv_silu_forward, "CPU")
LIBRARY.impl("conv_silu_backward", _conv_silu_backward, "CPU")
LIBRARY.impl("conv_swiglu_forward", cpu_tokens.conv_swiglu, "CPU")
LIBRARY.impl("conv_swiglu_backward", _conv_swiglu_backward, "CPU")
LIBRARY.impl("patches_forward", cpu_tokens.patches, "CPU")
LIBRARY.impl("swiglu_forward", cpu_tokens.swiglu, "CPU")
LIBRARY.impl("swiglu_backward", cpu_tokens.swiglu_backward, "CPU")
LIBRARY.impl("swiglu_mlp_forward", swiglu_mlp_forward, "CPU")
LIBRARY.impl("add_mixer_forward", add_mixer_forward, "CPU")


# --- shapes without data


def _fake(name: str):
    return torch.library.register_fake(f"metala::{name}", lib=LIBRARY)


@_fake("scan_forward")
def _(q, log_decay, v, k, rows, cols, scan, scale):
    return _empty_like(v)


@_fake("scan_backward")
def _(dout, q, log_decay, v, k, rows, cols, scan, scale):
    dk = q.new_empty(0) if k is None else _empty_like(k)
    return _empty_like(q), _empty_like(log_decay), _empty_like(v), dk


@_fake("mixer_forward")
def _(projected, gate_bias, aug_weight, num_heads, rows, cols, scan, decay_scale, keep):
    shape = (projected.shape[0], projected.shape[1], projected.shape[2] // 3)
    return projected.new_empty(shape), projected.new_empty(shape if keep else (0,), dtype=torch.float32)


@_fake("mixer_backward")
def _(dy, o, projected, gate_bias, aug_weight, num_heads, rows, cols, scan, decay_scale):
    return _empty_like(projected), _empty_like(gate_bias), _empty_like(aug_weight)


@_fake("conv_silu_forward")
def _(x, weight, rows, cols, out_dtype):
    return x.new_empty(x.shape, dtype=out_dtype)


@_fake("conv_silu_backward")
def _(dout, x, weight, rows, cols):
    return _empty_like(x), _empty_like(weight)


@_fake("conv_swiglu_forward")
def _(x, weight, rows, cols):
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@_fake("conv_swiglu_backward")
def _(dout, x, weight, rows, cols):
    return _empty_like(x), _empty_like(weight)


@_fake("patches_forward")
def _(x, height, width):
    batch, chans, *sides = x.shape
    return x.new_empty(batch, -(-sides[0] // height), -(-sides[1] // width), chans * height * width)


@_fake("swiglu_forward")
def _(x):
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@_fake("swiglu_backward")
def _(dout, x):
    return _empty_like(x)


@_fake("swiglu_mlp_forward")
def _(x, weight_in, weight_out, norm_weight, norm_bias, eps, conv_weight, rows, cols):
    return x.new_empty((*x.shape[:-1], weight_out.shape[0]))


@_fake("add_mixer_forward")
def _(x, *parameters_and_problem):
    return _empty_like(x)
