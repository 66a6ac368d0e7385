"""Tensors with NaN around them, and memory that comes full of NaN."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

MARGIN = 64  # elements on either side


def arena(x: Tensor) -> Tensor:
    """A copy of `x` of the same strides inside of a buffer of NaN: reading beyond it shows."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))
    buffer = torch.full((span + 2 * MARGIN,), float("nan"), dtype=x.dtype)
    view = buffer.as_strided(x.shape, x.stride(), MARGIN)
    view.copy_(x) if 0 not in x.stride() else buffer[MARGIN : MARGIN + span].copy_(x.as_strided((span,), (1,)))
    return view


@contextlib.contextmanager
def poisoned_memory(monkeypatch) -> Iterator[None]:
    """Within, `new_empty` gives NaN inside of NaN; at the end the margins must be NaN still."""
    buffers = []
    original = torch.Tensor.new_empty

    def new_empty(self: Tensor, *shape, dtype: torch.dtype | None = None, **interpreter) -> Tensor:
        if interpreter:  # its own copies of the arguments
            return original(self, *shape, **interpreter)
        shape = torch.Size(shape[0] if isinstance(shape[0], (tuple, torch.Size)) else shape)
        buffer = torch.full((shape.numel() + 2 * MARGIN,), float("nan"), dtype=dtype or self.dtype)
        buffers.append(buffer)
        return buffer[MARGIN:-MARGIN].view(shape)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", new_empty)
        yield
    assert buffers, "nothing was allocated by new_empty: this check checks nothing"
    for buffer in buffers:
        assert buffer[:MARGIN].isnan().all(), "written before the start of a tensor"
        assert buffer[-MARGIN:].isnan().all(), "written behind the end of a tensor"
