"""The one door to gated linear attention: checks the arguments, chooses the backend, owns the dtypes."""

import logging
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from .chunked import chunked
from .reference import recurrence

SCAN_ORDERS = ("row", "row_reverse", "column", "column_reverse")
GATE_FLOOR = -5.0  # decay 0.0067 per token; part of the definition, so that every backend can factor its exponentials

# Best first. A backend maps (q, log_decay, v, k, grid, scan, scale), all checked and of one dtype, to [B, N, H, V].
BACKENDS: dict[str, Callable[..., Tensor]] = {"chunked": chunked, "reference": recurrence}

_logger = logging.getLogger(__name__)
_announced: set[str] = set()


def available_backends() -> tuple[str, ...]:
    """Names that `gated_linear_attention(backend=...)` takes on this machine, the automatic choice first."""
    return tuple(BACKENDS)


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
        log_decay: [B, N, H, K], clamped to [-5, 0]; its gradient is zero where it was clamped.
        v: [B, N, H, V].
        k: [B, N, H, K], or None for MetaLA's 1 - exp(log_decay).
        grid: (rows, cols) with rows * cols == N, tokens row-major; None is (1, N).
        scan: non-empty, out of "row", "row_reverse", "column" and "column_reverse", none twice.
        scale: None is K ** -0.5.
        backend: None for the best one available, or a name out of `available_backends()`.

    Returns:
        [B, N, H, V] in the dtype of `v`. State and sums are float32, or float64 where an input is float64.

    Raises:
        ValueError: an argument that does not fit, named with what it got and what it expects.
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

    `scan` is its orders joined by commas: tracers take a string, and no list of strings.
    """
    orders = tuple(scan.split(",")) if scan else ()
    _check(q, log_decay, v, k, rows, cols, orders)
    run = _choose(backend)
    compute = torch.float32
    for x in (q, log_decay, v, v if k is None else k):
        compute = torch.promote_types(compute, x.dtype)
    # Autocast would turn the products of rescaled q and k into half precision, where their range does not fit.
    device = v.device.type
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        gate = log_decay.to(compute).clamp(GATE_FLOOR, 0.0)
        # -expm1 and not 1 - exp: near zero the difference would keep no digits.
        key = -torch.expm1(gate) if k is None else k.to(compute)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        out = run(q.to(compute), gate, v.to(compute), key, (rows, cols), orders, scale)
        return out.to(v.dtype)


_library = torch.library.Library("metala", "DEF")
_library.define(
    "gated_linear_attention(Tensor q, Tensor log_decay, Tensor v, Tensor? k, int rows, int cols, str scan,"
    " float? scale, str? backend) -> Tensor"
)
_library.impl("gated_linear_attention", _gated_linear_attention, "CompositeImplicitAutograd")


def _choose(backend: str | None) -> Callable[..., Tensor]:
    if backend is None:
        backend = next(iter(BACKENDS))
        if backend not in _announced and not torch.compiler.is_compiling():
            _announced.add(backend)
            _logger.info("gated_linear_attention: backend %r", backend)
    elif backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected None or one of {available_backends()}")
    return BACKENDS[backend]


def _check(
    q: Tensor, log_decay: Tensor, v: Tensor, k: Tensor | None, rows: int, cols: int, scan: tuple[str, ...]
) -> None:
    """Raises ValueError for what does not fit."""
    tensors = {"q": q, "log_decay": log_decay, "v": v} | ({} if k is None else {"k": k})
    for name, x in tensors.items():
        if x.dim() != 4:
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected 4 dimensions [B, N, H, channels]")
        if not x.is_floating_point():
            raise ValueError(f"{name}: got {x.dtype}, expected a floating point dtype")
        if x.device != v.device:
            raise ValueError(f"{name}: got device {x.device}, expected {v.device}, the device of v")
        if name in ("log_decay", "k") and x.shape != q.shape:
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected {tuple(q.shape)}, the shape of q")
    if v.shape[:3] != q.shape[:3]:
        raise ValueError(f"v: got shape {tuple(v.shape)}, expected [B, N, H, V] with {tuple(q.shape[:3])} from q")
    tokens = q.shape[1]
    if tokens < 1:
        raise ValueError("q: got 0 tokens, expected at least 1")
    if q.shape[3] < 1:
        raise ValueError(f"q: got shape {tuple(q.shape)}, expected at least 1 channel")
    if rows < 1 or cols < 1 or rows * cols != tokens:
        raise ValueError(f"grid: got ({rows}, {cols}), expected (rows, cols) with rows * cols == {tokens} tokens")
    if not scan or len(set(scan)) != len(scan) or not set(scan) <= set(SCAN_ORDERS):
        raise ValueError(f"scan: got {tuple(scan)}, expected a non-empty tuple out of {SCAN_ORDERS}, none twice")
