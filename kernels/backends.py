"""Which backend runs: by device, dtype and width of the heads, by name, and by what PyTorch does with the tensors.

The choice is made in one place, and logged once. Only the automatic choice falls back, and says so once.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import native
from .chunked import chunked
from .reference import recurrence

# Plain PyTorch, for any device and dtype: (q, log_decay, v, k, grid, scan, scale), all checked and of one dtype.
COMPOSED: dict[str, Callable[..., Tensor]] = {"chunked": chunked, "reference": recurrence}
NAMES = ("cpu", "triton", *COMPOSED)

C_DTYPES = (torch.float32, torch.bfloat16)  # of element-wise operators; scans take any but float64, and sum in float32
MAX_TRITON_WIDTH = 64  # K and V of a head; beyond it the kernels would spill. Wider values of a scan go in parts
TRANSFORMED = "torch.func and forward-mode derivatives take operators apart"

_logger = logging.getLogger(__name__)
_announced: set[str] = set()
_asked_for: ContextVar[str | None] = ContextVar("metala_backend", default=None)


def available_backends(device: str | torch.device = "cpu") -> tuple[str, ...]:
    """Names that `gated_linear_attention(backend=...)` takes for tensors on `device`, the automatic choice first.

    On the CPU the first call of a process may compile the C kernels, which takes a few seconds.
    """
    kind = torch.device(device).type
    if kind == "cpu" and native.available():
        return "cpu", *COMPOSED
    if kind == "cuda" and _has_triton():
        return "triton", *COMPOSED
    return tuple(COMPOSED)


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """A context in which every operator that is not given a backend takes this one, in this thread and in whole models.

        with metala_vision.kernels.backend("chunked"):
            model(x)

    A graph that torch.compile or torch.export makes inside keeps the backend, and a backward pass takes that of its
    forward pass. Activation checkpointing computes the forward pass again in the backward pass, by the backend of that
    moment: with checkpointing, run the backward pass inside too.

    Args:
        name: as `gated_linear_attention` takes it. None is the automatic choice.

    Raises:
        ValueError: an unknown name; a call inside raises it where the backend cannot run.
    """
    if name is not None and name not in NAMES:
        raise ValueError(f"backend: got {name!r}, expected None or one of {NAMES}")
    token = _asked_for.set(name)
    try:
        yield
    finally:
        _asked_for.reset(token)


def choose(name: str | None, device: torch.device, dtype: torch.dtype, width: int, transformed: bool = False) -> str:
    """The name of the backend for tensors of a device and (promoted) dtype.

    `width`: channels that no kernel splits, those of a scan's queries or of a mixer's heads. `transformed`: see
    `is_transformed`.

    Raises:
        ValueError: an unknown name, or a backend that cannot run here; the message says why.
    """
    name = _asked_for.get() if name is None else name
    if name in COMPOSED:
        return name
    kernel = {"cpu": "cpu", "meta": "cpu", "cuda": "triton"}.get(device.type, "chunked")
    reason = _what_keeps(kernel, device, dtype, width, transformed)
    if name is not None:
        if name not in NAMES:
            raise ValueError(f"backend: got {name!r}, expected None or one of {NAMES}")
        if name != kernel or reason:
            reason = reason if name == kernel else f"it does not run on {device.type}"
            expected = f"expected None or one of {tuple(COMPOSED)}"
            raise ValueError(f"backend: got {name!r}, which cannot run here: {reason}; {expected}")
        return name
    if torch.onnx.is_in_onnx_export():
        return "chunked"
    if reason and dtype != torch.float64 and reason not in _announced:
        _announced.add(reason)
        slower = " (5 to 11 times slower)" if device.type == "cpu" else ""
        _logger.warning("%s: the chunked PyTorch form runs instead of the kernel%s", reason, slower)
    chosen = "chunked" if reason else kernel
    if chosen not in _announced:
        _announced.add(chosen)
        _logger.info("gated_linear_attention: backend %r", chosen)
    return chosen


def _what_keeps(kernel: str, device: torch.device, dtype: torch.dtype, width: int, transformed: bool) -> str:
    """Why the kernel of this device cannot run; empty if it can."""
    if dtype == torch.float64:
        return "kernels compute in float32, the input is float64"
    if transformed and kernel != "chunked":
        return TRANSFORMED
    if kernel == "triton" and not _has_triton():
        return "Triton is not installed"
    if kernel == "triton" and width > MAX_TRITON_WIDTH:
        return f"the Triton kernels take heads of up to {MAX_TRITON_WIDTH} channels, the input has {width}"
    if device.type == "cpu":
        try:
            native.library()
        except native.NativeError as error:
            return str(error)
    return ""


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def runs_in_c(x: Tensor, *others: Tensor) -> bool:
    """Whether the C kernels take an element-wise operator; on a GPU PyTorch composes it, or torch.compile fuses it."""
    transformed = is_transformed((x, *others))
    return x.dtype in C_DTYPES and choose(None, x.device, x.dtype, 0, transformed) == "cpu"


def is_transformed(arguments: tuple) -> bool:
    """Whether torch.func or forward-mode differentiation works on these arguments.

    Both have a rule for each of PyTorch's own operators but none for a kernel, so the composed forms run instead.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in arguments)


def needs_gradient(arguments: tuple) -> bool:
    """Whether a call is recorded for a backward pass."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Switches autocast off: it would compute products of rescaled q and k in half precision, where they overflow."""
    kind = device.type
    # Only "meta" has no autocast of its own. To ask torch which devices have one would break the graph of torch 2.11.
    on = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()
