"""Pooling in plain operators of ONNX, for maps of any size."""

from collections.abc import Sequence

import numpy as np

from .onnx_values import FLOAT, Value, constant, count, ints, like, op, part, shape, side, transposed, wide


def maximum(
    x: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Value:
    """Maxima of areas of [B, C, rows, cols]. Where `ceil_mode` has areas larger than the map, OpenVINO has none."""
    kernel, padding, dilation = (_pair(given) for given in (kernel_size, padding, dilation))
    strides = _pair(stride) if stride else kernel
    if ceil_mode and strides == kernel and padding == [0, 0] and dilation == [1, 1]:
        x, ceil_mode = _filled(x, kernel), False
    options = dict(kernel_shape=kernel, strides=strides, pads=padding * 2, dilations=dilation)
    return op.MaxPool(x, ceil_mode=int(ceil_mode), **options)[0]


def _pair(given: int | Sequence[int]) -> list[int]:
    values = [given] if isinstance(given, int) else list(given)
    return values * 2 if len(values) == 1 else values


def _filled(x: Value, kernel: Sequence[int]) -> Value:
    """With the lowest number below and at the right, so that there are whole areas."""
    sizes = op.Shape(x)
    rest = [op.Mod(op.Neg(part(sizes, i, i + 1, axis=0)), ints(length)) for i, length in zip((2, 3), kernel)]
    return op.Pad(x, shape(0, 0, 0, 0, 0, 0, *rest), like(constant(np.finfo(np.float32).min), x))


def adaptive_average(x: Value, size: list[int | Value]) -> Value:
    """Means of [B, C, rows, cols] over areas, as many as `size` says, in two products; torch's exporter fixes them."""
    sizes = op.Shape(x)
    rows, cols = (_shares(part(sizes, i, i + 1, axis=0), side(areas)) for i, areas in zip((2, 3), size))
    return like(op.MatMul(op.MatMul(rows, wide(x)), transposed(cols)), x)


def _shares(length: Value, areas: Value) -> Value:
    """[areas, length], a mean in each row: of the places from floor(i n / m) up to ceil((i + 1) n / m), as torch cuts.

    Args:
        length: n, a vector of one element.
        areas: m, likewise.
    """
    start = op.Mul(count(areas), length)
    end = op.Div(op.Sub(op.Add(op.Add(start, length), areas), ints(1)), areas)
    start = op.Div(start, areas)
    place = op.Unsqueeze(count(length), ints(0))
    after, before = (op.Unsqueeze(bound, ints(1)) for bound in (start, end))
    inside = op.Cast(op.And(op.GreaterOrEqual(place, after), op.Less(place, before)), to=FLOAT)
    return op.Div(inside, op.ReduceSum(inside, ints(1), keepdims=1))
