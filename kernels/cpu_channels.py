"""The C scan of heads with one key and one value channel, on torch tensors: the mirror of channels.c.

Shapes: B batch, N tokens (rows * cols, row-major), H heads.
"""

from ctypes import Structure, byref, c_int64, c_void_p

import torch
from torch import Tensor

from .cpu_calls import channels_contiguous, check, function, is_half
from .cpu_problem import Problem, View, of_one_dtype, problem_of


class _Forward(Structure):
    _fields_ = [("p", Problem), ("out", View)]


class _Backward(Structure):
    _fields_ = [
        ("p", Problem),
        ("dout", View),
        ("dout_half", c_int64),
        *((name, c_void_p) for name in ("dq", "ddecay", "dv", "dk")),
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
    """`cpu.forward` of tensors [B, N, H, 1]."""
    inputs = _side_by_side(q, log_decay, v, k)
    out = inputs[2].new_empty(v.shape)
    check(function("metala_channels_forward")(byref(_Forward(problem_of(*inputs, grid, scan, scale), _view(out)))))
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
    """`cpu.backward` of tensors [B, N, H, 1]."""
    inputs = _side_by_side(q, log_decay, v, k)
    dout = channels_contiguous((dout if is_half(dout) else dout.float()).squeeze(3)).unsqueeze(3)
    dq, dg, dv = (q.new_empty(q.shape, dtype=torch.float32) for _ in range(3))
    dk = None if k is None else torch.empty_like(dq)
    call = _Backward(problem_of(*inputs, grid, scan, scale), _view(dout), is_half(dout))
    call.dq, call.ddecay, call.dv = (x.data_ptr() for x in (dq, dg, dv))
    call.dk = None if dk is None else dk.data_ptr()
    check(function("metala_channels_backward")(byref(call)))
    return dq, dg, dv, dk


def _side_by_side(
    q: Tensor, log_decay: Tensor, v: Tensor, k: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The inputs in one dtype, [B, N, H, 1] with the heads next to each other in memory."""
    q, log_decay, v = (x.squeeze(3) for x in (q, log_decay, v))
    q, log_decay, v, k = of_one_dtype(q, log_decay, v, None if k is None else k.squeeze(3))
    return q.unsqueeze(3), log_decay.unsqueeze(3), v.unsqueeze(3), None if k is None else k.unsqueeze(3)


def _view(x: Tensor) -> View:
    return View(x.data_ptr(), x.stride(0), x.stride(1), 1)
