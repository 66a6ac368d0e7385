"""What every C scan is told: the mirror of the structures in scan.h, made of torch tensors.

Shapes: B batch, N tokens (rows * cols, row-major), H heads, K key channels, V value channels.
"""

from ctypes import Structure, c_float, c_int64, c_void_p

import torch
from torch import Tensor

from . import native
from .cpu_calls import channels_contiguous, is_half
from .reference import NORM_EPS, SCAN_ORDERS

VALUE_BLOCK = 16  # the fewest value channels that a thread takes


class View(Structure):
    """A tensor [B, N, H, channels] with its channels side by side; strides in elements."""

    _fields_ = [("data", c_void_p), ("batch", c_int64), ("token", c_int64), ("head", c_int64)]


class Problem(Structure):
    """`problem` of scan.h, field by field."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "heads", "rows", "cols", "key", "value", "orders")),
        ("order", c_int64 * 4),
        *((name, c_int64) for name in ("share", "threads", "half", "logits", "gated")),
        *((name, c_float) for name in ("scale", "root", "eps")),
        *((name, View) for name in ("q", "decay", "k", "v", "z")),
        ("gate_bias", c_void_p),
        ("aug_weight", c_void_p),
    ]


def of_one_dtype(
    q: Tensor, log_decay: Tensor, v: Tensor, k: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The inputs in bfloat16 if all of them are, else in float32, with the last axis side by side."""
    half = all(x is None or is_half(x) for x in (q, log_decay, v, k))
    dtype = torch.bfloat16 if half else torch.float32
    q, log_decay, v = (channels_contiguous(x.to(dtype)) for x in (q, log_decay, v))
    return q, log_decay, v, None if k is None else channels_contiguous(k.to(dtype))


def view(x: Tensor | None) -> View:
    """A tensor of four axes, whose memory must outlive the call; None is no data."""
    return View() if x is None else View(x.data_ptr(), *x.stride()[:3])


def problem_of(
    q: Tensor, decay: Tensor, v: Tensor, k: Tensor | None, grid: tuple[int, int], scan: tuple[str, ...], scale: float
) -> Problem:
    """A scan of tensors of one dtype, with log-decays, divided among the threads."""
    batch, _, heads, key = q.shape
    orders = (c_int64 * 4)(*map(SCAN_ORDERS.index, scan))
    problem = Problem(batch, heads, *grid, key, v.shape[3], len(scan), orders)
    divide(problem, native.num_threads())
    problem.half = is_half(q)
    problem.scale, problem.eps = scale, NORM_EPS
    problem.q, problem.decay, problem.k, problem.v = view(q), view(decay), view(k), view(v)
    return problem


def divide(problem: Problem, threads: int) -> None:
    """Cuts V into blocks while there are more threads than tasks; every block computes the gates of its head anew."""
    problem.threads, problem.share = threads, 1
    at_once = min(problem.orders, 2)
    if problem.batch * problem.heads * problem.value == 0:
        return
    while problem.batch * problem.heads * at_once < threads and problem.value % (2 * VALUE_BLOCK) == 0:
        problem.share, problem.heads, problem.value = 2 * problem.share, 2 * problem.heads, problem.value // 2
