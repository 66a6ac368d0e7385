"""What every call into the C library needs: its functions, the dtypes and layouts that it takes, and kept memory."""

import ctypes
import threading

import torch
from torch import Tensor

from . import native

SCRATCH_BYTES = 128 << 20  # the most that is kept between calls, for each kind of scratch and each calling thread


def function(name: str, result: type = ctypes.c_int):
    """A function of the library by its name, returning `result`."""
    found = getattr(native.library(), name)
    found.restype = result
    return found


def check(status: int) -> None:
    """Raises MemoryError for a status that is not 0."""
    if status:
        raise MemoryError("the C kernel found no memory for its scratch buffers")


def is_half(x: Tensor) -> bool:
    """Whether the kernels read `x` as bfloat16, and not as float32."""
    return x.dtype == torch.bfloat16


def channels_contiguous(x: Tensor) -> Tensor:
    """`x`, or a copy of it with the last axis side by side in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


class _Scratch(threading.local):
    """Memory for one call at a time, kept by each thread: fresh pages would cost every call more than using them."""

    def __init__(self):
        self.memory: dict[str, Tensor] = {}


_kept = _Scratch()


def scratch(kind: str, size: int, dtype: torch.dtype) -> Tensor:
    """`size` uninitialised elements, valid until the next call for this kind in this thread."""
    count = size * dtype.itemsize
    memory = _kept.memory.get(kind)
    if memory is None or memory.numel() < count:
        memory = torch.empty(count, dtype=torch.uint8, device="cpu")
        if count <= SCRATCH_BYTES:
            _kept.memory[kind] = memory
    return memory[:count].view(dtype)
