"""The operators under the layers, also for tracers that hand out the sides of a grid as tensors.

An operator takes the sides as integers, and torch.jit.trace would record the sides of the one image that it sees, for
images of every size. So while it traces a module, layers call the operators through TorchScript functions that read the
sides at each call. The TorchScript exporter of ONNX, torch.onnx.export(dynamo=False), knows only PyTorch's own
operators, and gets those.
"""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from metala_vision.kernels import unfused
from metala_vision.kernels.chunked import chunked


def is_traced_for_onnx() -> bool:
    """Whether torch.onnx.export(dynamo=False) is tracing."""
    return torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()


def keeps_sizes_open() -> bool:
    """Whether torch.jit.trace is making a module, which can be called with images of any size.

    Otherwise it is making a function, or a graph to be read, as fvcore does to count operators. Both hold the size of
    one image only, and this warns of it.
    """
    if torch.jit._trace._trace_module_map is not None:  # the test of torch.nn.Module itself
        return True
    warnings.warn(
        "the grid of this one image is recorded: for images of any size trace the model itself, torch.jit.trace(model,"
        " x), and no function around it",
        torch.jit.TracerWarning,
        stacklevel=3,
    )
    return False


def attention(q: Tensor, log_decay: Tensor, k: Tensor | None, v: Tensor, grid: tuple[int, int], orders: str) -> Tensor:
    """`metala_vision.kernels.gated_linear_attention`, with its orders joined by commas."""
    if not torch.jit.is_scripting() and torch.jit.is_tracing():
        if is_traced_for_onnx():
            scale = q.shape[-1] ** -0.5
            return unfused.attention(chunked, q, log_decay, v, k, grid, tuple(orders.split(",")), scale)
        if keeps_sizes_open():
            return compiled(_traced_attention)(q, log_decay, v, k, *as_tensors(grid), orders)
    return torch.ops.metala.gated_linear_attention(q, log_decay, v, k, grid[0], grid[1], orders, None, None)


def conv_silu(x: Tensor, weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """`metala_vision.kernels.conv_silu`."""
    if not torch.jit.is_scripting() and torch.jit.is_tracing():
        if is_traced_for_onnx():
            return unfused.conv_silu(x, weight, grid[0], grid[1])
        if keeps_sizes_open():
            return compiled(_traced_conv_silu)(x, weight, *as_tensors(grid))
    return torch.ops.metala.conv_silu(x, weight, grid[0], grid[1])


def conv_swiglu(x: Tensor, weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """`metala_vision.kernels.conv_swiglu`."""
    if not torch.jit.is_scripting() and torch.jit.is_tracing():
        if is_traced_for_onnx():
            return unfused.conv_swiglu(x, weight, grid[0], grid[1])
        if keeps_sizes_open():
            return compiled(_traced_conv_swiglu)(x, weight, *as_tensors(grid))
    return torch.ops.metala.conv_swiglu(x, weight, grid[0], grid[1])


def mixer(
    projected: Tensor,
    gate_bias: Tensor,
    aug_weight: Tensor,
    num_heads: int,
    grid: tuple[int, int],
    orders: str,
    decay_scale: float,
) -> Tensor:
    """`metala_vision.kernels.mixer`."""
    if not torch.jit.is_scripting() and torch.jit.is_tracing():
        if is_traced_for_onnx():
            scan = tuple(orders.split(","))
            return unfused.mixer(chunked, projected, gate_bias, aug_weight, num_heads, grid, scan, decay_scale)
        if keeps_sizes_open():
            sides = *as_tensors(grid), as_tensor(decay_scale, torch.float64)
            return compiled(_traced_mixer)(projected, gate_bias, aug_weight, num_heads, *sides, orders)
        decay_scale = recorded(decay_scale)
    return torch.ops.metala.mixer(
        projected, gate_bias, aug_weight, num_heads, grid[0], grid[1], orders, None, decay_scale
    )


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
    orders: str,
    decay_scale: float,
    bias_in: Tensor | None,
) -> Tensor:
    """`metala_vision.kernels.add_mixer`; not for ONNX."""
    norm = norm_weight, norm_bias, eps
    weights = conv_weight, weight_in, gate_bias, aug_weight, weight_out
    if torch.jit.is_tracing() and keeps_sizes_open():
        sides = *as_tensors(grid), as_tensor(decay_scale, torch.float64)
        return compiled(_traced_add_mixer)(x, *norm, *weights, num_heads, *sides, orders, bias_in)
    decay_scale = recorded(decay_scale)
    return torch.ops.metala.add_mixer(x, *norm, *weights, num_heads, *grid, orders, decay_scale, bias_in)


def add_swiglu_mlp(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight_in: Tensor,
    weight_out: Tensor,
    conv_weight: Tensor | None,
    grid: tuple[int, int] | None,
) -> Tensor:
    """`metala_vision.kernels.add_swiglu_mlp`; not for ONNX."""
    parameters = norm_weight, norm_bias, eps, weight_in, weight_out
    if conv_weight is None or grid is None:
        return torch.ops.metala.add_swiglu_mlp(x, *parameters)
    if torch.jit.is_tracing() and keeps_sizes_open():
        return compiled(_traced_add_swiglu_mlp)(x, *parameters, conv_weight, *as_tensors(grid))
    return torch.ops.metala.add_swiglu_mlp(x, *parameters, conv_weight, *grid)


def swiglu(x: Tensor) -> Tensor:
    """`metala_vision.kernels.swiglu`."""
    if not torch.jit.is_scripting():
        return unfused.swiglu(x) if is_traced_for_onnx() else torch.ops.metala.swiglu(x)
    return torch.ops.metala.swiglu(x)


# --- functions of TorchScript


def as_tensors(grid: tuple[int | Tensor, int | Tensor]) -> list[Tensor]:
    """Rows and columns as tensors, the form in which torch.jit.trace passes them on."""
    return [as_tensor(side, torch.int64) for side in grid]


def as_tensor(number: float | Tensor, dtype: torch.dtype) -> Tensor:
    """A number that depends on the sides of an image as a tensor, the form in which torch.jit.trace passes it on."""
    return number if isinstance(number, Tensor) else torch.scalar_tensor(number, dtype=dtype)


def recorded(number: float | Tensor) -> float:
    """A number that depends on the sides of an image, fixed at this image's; `keeps_sizes_open` has warned of it."""
    if not isinstance(number, Tensor):
        return number
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return float(number)


@functools.cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that torch.jit.trace records as it is, with its conditions and integers."""
    with warnings.catch_warnings():  # torch.jit.trace has just said the same
        warnings.filterwarnings("ignore", ".torch.jit.* is deprecated")
        return torch.jit.script(function)


def _traced_attention(
    q: Tensor, log_decay: Tensor, v: Tensor, k: Tensor | None, rows: Tensor, cols: Tensor, orders: str
) -> Tensor:
    return torch.ops.metala.gated_linear_attention(q, log_decay, v, k, int(rows), int(cols), orders, None, None)


def _traced_conv_silu(x: Tensor, weight: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    return torch.ops.metala.conv_silu(x, weight, int(rows), int(cols))


def _traced_conv_swiglu(x: Tensor, weight: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    return torch.ops.metala.conv_swiglu(x, weight, int(rows), int(cols))


def _traced_mixer(
    projected: Tensor,
    gate_bias: Tensor,
    aug_weight: Tensor,
    num_heads: int,
    rows: Tensor,
    cols: Tensor,
    decay_scale: Tensor,
    orders: str,
) -> Tensor:
    return torch.ops.metala.mixer(
        projected, gate_bias, aug_weight, num_heads, int(rows), int(cols), orders, None, float(decay_scale)
    )


def _traced_add_mixer(
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
    rows: Tensor,
    cols: Tensor,
    decay_scale: Tensor,
    orders: str,
    bias_in: Tensor | None,
) -> Tensor:
    return torch.ops.metala.add_mixer(
        x,
        norm_weight,
        norm_bias,
        eps,
        conv_weight,
        weight_in,
        gate_bias,
        aug_weight,
        weight_out,
        num_heads,
        int(rows),
        int(cols),
        orders,
        float(decay_scale),
        bias_in,
    )


def _traced_add_swiglu_mlp(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight_in: Tensor,
    weight_out: Tensor,
    conv_weight: Tensor,
    rows: Tensor,
    cols: Tensor,
) -> Tensor:
    return torch.ops.metala.add_swiglu_mlp(
        x, norm_weight, norm_bias, eps, weight_in, weight_out, conv_weight, int(rows), int(cols)
    )
