"""The one door to the operators: checks the arguments, chooses the backend, owns the dtypes.

Each operator is CompositeImplicitAutograd: TorchScript, FX, jit.trace and torch.compile see one call. The backend is
chosen when that call is decomposed, by device, dtype and what runs on this machine.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from . import library, unfused
from .backends import C_DTYPES, COMPOSED, choose, is_transformed, needs_gradient, runs_in_c, without_autocast
from .checks import check_attention, check_conv, check_device, check_mixer, check_mlp, check_norm, check_pairs


def gated_linear_attention(
    q: Tensor,
    log_decay: Tensor,
    v: Tensor,
    *,
    k: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    scan: tuple[str, ...] = ("row",),
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Gated linear attention over a grid of tokens (MetaLA, arXiv 2411.10741, eq. 11 and A31 to A35).

    In one scan order S_t = diag(exp(log_decay_t)) S_{t-1} + k_t^T v_t and o_t = scale * q_t S_t. With several orders
    the outputs are summed, and a token's own term counts once.

    Args:
        q: [B, N, H, K], float64, float32, bfloat16 or float16; any strides.
        log_decay: [B, N, H, K], clamped to [-5, 0]; its gradient is zero where it was clamped, the ends included.
        v: [B, N, H, V].
        k: [B, N, H, K], or None for MetaLA's 1 - exp(log_decay).
        grid: (rows, cols) with rows * cols == N, tokens row-major; None is (1, N).
        scan: non-empty, out of "row", "row_reverse", "column" and "column_reverse", none twice.
        scale: None is K ** -0.5.
        backend: a name: "cpu" (C) or "triton", each on its own device and in float32 or lower, or "chunked" or
            "reference", anywhere; see `available_backends`. None takes the one that `backends.backend` has set, or else
            the best one available. A backward pass that is itself recorded, and the transforms of torch.func, take the
            chunked form.

    Returns:
        [B, N, H, V] in the dtype of `v`. State and sums are float32, or float64 where an input is float64.

    Raises:
        ValueError: an argument does not fit; the message names it, what it got and what it expects.
    """
    if isinstance(scan, str):
        raise ValueError(f"scan: got the string {scan!r}, expected a tuple of orders such as ({scan!r},)")
    if not isinstance(scan, (tuple, list)) or not all(isinstance(order, str) for order in scan):
        raise ValueError(f"scan: got {scan!r}, expected a tuple of orders such as ('row', 'row_reverse')")
    if grid is None:
        grid = (1, q.shape[1] if q.dim() > 1 else 0)
    elif not isinstance(grid, (tuple, list, torch.Size)) or len(grid) != 2 or any(isinstance(n, float) for n in grid):
        raise ValueError(f"grid: got {grid!r}, expected (rows, cols), two integers")
    return torch.ops.metala.gated_linear_attention(q, log_decay, v, k, grid[0], grid[1], ",".join(scan), scale, backend)


def _gated_linear_attention(
    q: Tensor,
    log_decay: Tensor,
    v: Tensor,
    k: Tensor | None,
    rows: int,
    cols: int,
    scan: str,
    scale: float | None,
    backend: str | None,
) -> Tensor:
    """The registered form of `gated_linear_attention`: what TorchScript, FX and torch.compile see.

    `scan` holds the orders joined by commas, since tracers take a string but no list of strings.
    """
    orders = tuple(scan.split(",")) if scan else ()
    check_attention(q, log_decay, v, k, rows, cols, orders)
    compute = torch.float32
    for x in (q, log_decay, v, v if k is None else k):
        compute = torch.promote_types(compute, x.dtype)
    transformed = is_transformed((q, log_decay, v, k))
    name = choose(backend, v.device, compute, q.shape[-1], transformed)  # of values the kernels take any number
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    with without_autocast(v.device):
        if name not in COMPOSED:
            arguments = (q, log_decay, v, k, rows, cols, scan, scale)
            return _differentiable(library.Scan, torch.ops.metala.scan_forward, arguments)
        return unfused.attention(COMPOSED[name], q, log_decay, v, k, (rows, cols), orders, scale)


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
    """From the fused projection of a MetaLA layer to its gated output, the input of the last projection.

    With q, logits, v, z = projected and g = decay_scale * logsigmoid(logits) / 16, clamped to [-5, 0], k = 1 - exp(g),
    all float32 or better inside:
    o = gated_linear_attention(q, g, v) + sigmoid((q . (aug_weight * k)) v), and the result is
    SiLU(z + gate_bias) * LayerNorm_per_head(o), without affine, eps 1e-5 (MetaLA, arXiv 2411.10741, eq. A31 to A37).

    Args:
        projected: [B, N, 3 C]: q (C / 2), logits (C / 2), v (C) and z (C), each with the channels of a head side by
            side.
        gate_bias: [C].
        aug_weight: [C / 2].
        num_heads: heads H.
        rows: rows of the grid; the N tokens are row-major.
        cols: columns of the grid.
        scan: orders joined by commas.
        backend: as for `gated_linear_attention`.
        decay_scale: factor on the log-decay. Below 1 every head remembers longer, in proportion to its inverse. Since k
            follows from the scaled log-decay, the state stays a leaky average.

    Returns:
        [B, N, C] in the dtype of `projected`.

    Raises:
        ValueError: shapes that do not fit, a `decay_scale` that is not positive.
    """
    if projected.dim() != 3 or projected.shape[2] % 3 or projected.shape[2] < 3:
        raise ValueError(f"projected: got shape {tuple(projected.shape)}, expected [B, N, 3 C]")
    dim = projected.shape[2] // 3
    orders = check_mixer(projected, dim, gate_bias, aug_weight, num_heads, rows, cols, scan, decay_scale)
    transformed = is_transformed((projected, gate_bias, aug_weight))
    name = choose(backend, projected.device, projected.dtype, dim // num_heads, transformed)
    with without_autocast(projected.device):
        if name in COMPOSED:
            grid = (rows, cols)
            return unfused.mixer(COMPOSED[name], projected, gate_bias, aug_weight, num_heads, grid, orders, decay_scale)
        arguments = (projected, gate_bias, aug_weight, num_heads, rows, cols, scan, decay_scale)
        if needs_gradient(arguments):
            return library.Mixer.apply(*arguments)
        return torch.ops.metala.mixer_forward(*arguments, False)[0]


def conv_silu(x: Tensor, weight: Tensor, rows: int, cols: int) -> Tensor:
    """SiLU of a depthwise 3x3 convolution on a grid of tokens.

    x is [B, N, C], row-major, weight [C, 1, 3, 3]; the result is [B, N, C] in the dtype of `x`, or in autocast's dtype
    where autocast is on. ValueError for shapes that do not fit.
    """
    check_conv(x, weight, rows, cols)
    if not runs_in_c(x, weight):
        return unfused.conv_silu(x, weight, rows, cols)
    lowers = x.dtype == torch.float32 and torch.is_autocast_enabled("cpu")
    out_dtype = torch.get_autocast_dtype("cpu") if lowers else x.dtype
    if out_dtype not in C_DTYPES:
        return unfused.conv_silu(x, weight, rows, cols)
    with without_autocast(x.device):
        arguments = (x, weight, rows, cols, out_dtype)
        return _differentiable(library.ConvSiLU, torch.ops.metala.conv_silu_forward, arguments)


def conv_swiglu(x: Tensor, weight: Tensor, rows: int, cols: int) -> Tensor:
    """SiLU of a depthwise 3x3 convolution of the gate on a grid of tokens, times the value; x = (gate, value).

    x is [B, N, 2 D], row-major, weight [D, 1, 3, 3]; the result is [B, N, D] in the dtype of `x`. ValueError for shapes
    that do not fit.
    """
    check_pairs(x)
    check_conv(x, weight, rows, cols, channels=x.shape[-1] // 2)
    if not runs_in_c(x, weight):
        return unfused.conv_swiglu(x, weight, rows, cols)
    return _differentiable(library.ConvSwiGLU, torch.ops.metala.conv_swiglu_forward, (x, weight, rows, cols))


def patches(x: Tensor, height: int, width: int) -> Tensor:
    """The patches of images: [B, chans, H, W] -> [B, rows, cols, chans * height * width], with zeros beyond the image.

    ValueError for anything but four axes, and for sides below 1.
    """
    if x.dim() != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected [B, chans, H, W]")
    if height < 1 or width < 1:
        raise ValueError(f"height, width: got {height}, {width}, expected at least 1")
    if needs_gradient((x,)) or not runs_in_c(x):
        return unfused.patches(x, height, width)
    return torch.ops.metala.patches_forward(x, height, width)


def swiglu(x: Tensor) -> Tensor:
    """SiLU(gate) * value of x = (gate, value): [..., 2 D] -> [..., D], in the dtype of `x`.

    ValueError for an odd number of channels.
    """
    check_pairs(x)
    if not runs_in_c(x):
        return unfused.swiglu(x)
    return _differentiable(library.SwiGLU, torch.ops.metala.swiglu_forward, (x,))


def swiglu_mlp(x: Tensor, weight_in: Tensor, weight_out: Tensor) -> Tensor:
    """swiglu(x weight_in^T) weight_out^T: [..., C] -> [..., C']; weight_in is [2 D, C], weight_out [C', D].

    Where no gradients are needed the C kernels take the tokens in tiles; otherwise it runs as three operators.
    ValueError for shapes that do not fit.
    """
    check_mlp(x, weight_in, weight_out)
    dtype = _fused_dtype(x, weight_in, weight_out)
    if dtype is None:
        return F.linear(swiglu(F.linear(x, weight_in)), weight_out)
    with without_autocast(x.device):
        weights = weight_in.to(dtype), weight_out.to(dtype)
        return torch.ops.metala.swiglu_mlp_forward(x.to(dtype), *weights, None, None, 0.0, None, 0, 0)


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
    """x + swiglu_mlp(LayerNorm(x)), the second half of a block: [..., C] -> [..., C].

    With `conv_weight` [D, 1, 3, 3], `conv_swiglu` stands in the place of swiglu: x is [B, N, C] then, on a grid of
    `rows` and `cols`. Where no gradients are needed, a tile of tokens goes through norm, first product and activation
    while it is in the cache, and the second product adds x in the same call. ValueError for shapes that do not fit.
    """
    check_mlp(x, weight_in, weight_out)
    check_norm(x, norm_weight, norm_bias)
    if weight_out.shape[0] != x.shape[-1]:
        raise ValueError(
            f"weight_out: got shape {tuple(weight_out.shape)}, expected ({x.shape[-1]}, D) to be added to x"
        )
    if conv_weight is not None:
        check_conv(x, conv_weight, rows, cols, "conv_weight", channels=weight_out.shape[1])
    others = (norm_weight, norm_bias) if conv_weight is None else (norm_weight, norm_bias, conv_weight)
    dtype = _fused_dtype(x, weight_in, weight_out, *others)
    if dtype is None:
        normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        if conv_weight is None:
            return x + swiglu_mlp(normed, weight_in, weight_out)
        return x + F.linear(conv_swiglu(F.linear(normed, weight_in), conv_weight, rows, cols), weight_out)
    with without_autocast(x.device):
        weights = weight_in.to(dtype), weight_out.to(dtype)
        convolution = conv_weight, rows, cols
        return torch.ops.metala.swiglu_mlp_forward(x, *weights, norm_weight, norm_bias, eps, *convolution)


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
    """x + mixer(conv_silu(LayerNorm(x)) weight_in^T + bias_in) weight_out^T, the first half of a block.

    x is [B, N, C], and so is the result. The arguments are those of `mixer` and `conv_silu`, weight_in [3 C, C],
    bias_in [3 C] or None, and weight_out [C, C]. Where no gradients are needed the C kernels run it as one operator;
    otherwise it runs as the operators named above. ValueError for shapes that do not fit.
    """
    check_conv(x, conv_weight, rows, cols, "conv_weight")
    dim = x.shape[2]
    if weight_in.shape != (3 * dim, dim) or weight_out.shape != (dim, dim):
        raise ValueError(
            f"weight_in, weight_out: got shapes {tuple(weight_in.shape)}, {tuple(weight_out.shape)},"
            f" expected ({3 * dim}, {dim}), ({dim}, {dim})"
        )
    check_norm(x, norm_weight, norm_bias)
    check_device("weight_in", weight_in, x)
    check_device("weight_out", weight_out, x)
    if bias_in is not None:
        if bias_in.shape != (3 * dim,):
            raise ValueError(f"bias_in: got shape {tuple(bias_in.shape)}, expected ({3 * dim},)")
        check_device("bias_in", bias_in, x)
    check_mixer(x, dim, gate_bias, aug_weight, num_heads, rows, cols, scan, decay_scale)
    parameters = [norm_weight, norm_bias, conv_weight, gate_bias, aug_weight]
    if bias_in is not None:
        parameters.append(bias_in)
    dtype = _fused_dtype(x, weight_in, weight_out, *parameters)
    if dtype is None:
        normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        projected = F.linear(conv_silu(normed, conv_weight, rows, cols), weight_in, bias_in)
        mixed = mixer(projected, gate_bias, aug_weight, num_heads, rows, cols, scan, None, decay_scale)
        return x + F.linear(mixed, weight_out)
    with without_autocast(x.device):
        norm = norm_weight, norm_bias, eps
        weights = conv_weight, weight_in.to(dtype), gate_bias, aug_weight, weight_out.to(dtype)
        bias_in = None if bias_in is None else bias_in.to(dtype)
        problem = num_heads, rows, cols, scan, decay_scale
        return torch.ops.metala.add_mixer_forward(x, *norm, *weights, *problem, bias_in)


def _fused_dtype(x: Tensor, weight_in: Tensor, weight_out: Tensor, *others: Tensor) -> torch.dtype | None:
    """The dtype of half a block's products (autocast's where it is on), or None if it cannot run as one operator."""
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    fits = dtype in C_DTYPES and (autocast or weight_in.dtype == weight_out.dtype == dtype)
    tensors = x, weight_in, weight_out, *others
    if not fits or needs_gradient(tensors) or not runs_in_c(*tensors):
        return None
    return dtype


# decay_scale is a Scalar, since it can depend on the size of an image: torch.export would record a float as a constant.
_OPERATORS = {
    "gated_linear_attention(Tensor q, Tensor log_decay, Tensor v, Tensor? k, SymInt rows, SymInt cols, str scan,"
    " float? scale, str? backend) -> Tensor": _gated_linear_attention,
    "mixer(Tensor projected, Tensor gate_bias, Tensor aug_weight, int num_heads, SymInt rows, SymInt cols, str scan,"
    " str? backend, Scalar decay_scale) -> Tensor": mixer,
    "conv_silu(Tensor x, Tensor weight, SymInt rows, SymInt cols) -> Tensor": conv_silu,
    "conv_swiglu(Tensor x, Tensor weight, SymInt rows, SymInt cols) -> Tensor": conv_swiglu,
    "patches(Tensor x, int height, int width) -> Tensor": patches,
    "swiglu(Tensor x) -> Tensor": swiglu,
    "swiglu_mlp(Tensor x, Tensor weight_in, Tensor weight_out) -> Tensor": swiglu_mlp,
    "add_swiglu_mlp(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor weight_in, Tensor weight_out,"
    " Tensor? conv_weight=None, SymInt rows=0, SymInt cols=0) -> Tensor": add_swiglu_mlp,
    "add_mixer(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor conv_weight, Tensor weight_in,"
    " Tensor gate_bias, Tensor aug_weight, Tensor weight_out, int num_heads, SymInt rows, SymInt cols, str scan,"
    " Scalar decay_scale, Tensor? bias_in=None) -> Tensor": add_mixer,
}
for _schema, _run in _OPERATORS.items():
    library.LIBRARY.define(_schema)
    library.LIBRARY.impl(_schema.split("(")[0], _run, "CompositeImplicitAutograd")
    # torch.func.vmap decomposes it too: PyTorch would otherwise run it once for each element of the batch, and warn
    library.LIBRARY.impl(_schema.split("(")[0], _run, "FuncTorchBatched")


def _differentiable(
    function: type[torch.autograd.Function], operator: Callable[..., Tensor], arguments: tuple
) -> Tensor:
    return function.apply(*arguments) if needs_gradient(arguments) else operator(*arguments)
