"""Pooling to a fixed number of areas in plain operators of ONNX, for maps of any size."""

from .onnx_values import FLOAT, Value, count, ints, like, op, part, side, transposed, wide


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
