"""Small words for writing graphs of ONNX: constants, sizes and slices, in plain operators of opset 20.

Functions of this room run while torch.onnx.export translates a program: they take and return values of the graph.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper
from onnxscript import opset20

Value: TypeAlias = Any  # onnxscript's symbolic tensors have no public class
op: Any = opset20  # whose type variables ask for more than symbolic tensors say of themselves
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def constant(x: object, dtype: type = np.float32) -> Value:
    """A constant of the graph."""
    return op.Constant(value=numpy_helper.from_array(np.array(x, dtype)))


def ints(*x: int) -> Value:
    """A vector of integers."""
    return constant(x, np.int64)


def side(x: int | Value) -> Value:
    """A size, which is an integer of Python or a scalar of the graph, as a vector of one element."""
    return ints(x) if isinstance(x, int) else op.Reshape(x, ints(1))


def shape(*parts: int | Value) -> Value:
    """A shape out of integers and vectors of the graph."""
    return op.Concat(*(ints(part) if isinstance(part, int) else part for part in parts), axis=0)


def count(n: Value) -> Value:
    """0, 1, ... n - 1 for a vector of one element."""
    return op.Range(constant(0, np.int64), op.Squeeze(n, ints(0)), constant(1, np.int64))


def part(x: Value, start: int | Value, stop: int | Value, axis: int = -1) -> Value:
    """x[start:stop] along an axis."""
    first, last = (ints(place) if isinstance(place, int) else place for place in (start, stop))
    return op.Slice(x, first, last, ints(axis))


def wide(x: Value) -> Value:
    """In float32: scans and gates are never computed in less."""
    return x if x.dtype is None or int(x.dtype) == FLOAT else op.Cast(x, to=FLOAT)


def like(x: Value, other: Value) -> Value:
    """x in the dtype of `other`."""
    return x if other.dtype is None or int(other.dtype) == FLOAT else op.Cast(x, to=int(other.dtype))


def layer_norm(x: Value, weight: Value, bias: Value | None, eps: float) -> Value:
    """LayerNorm over the last axis."""
    arguments = (x, weight) if bias is None else (x, weight, bias)
    return op.LayerNormalization(*arguments, axis=-1, epsilon=float(eps))[0]


def silu(x: Value) -> Value:
    """x * sigmoid(x)."""
    return op.Mul(x, op.Sigmoid(x))


def transposed(weight: Value) -> Value:
    """A matrix [out, in] as [in, out]."""
    return op.Transpose(weight, perm=[1, 0])


def known(x: Value) -> Sequence[int]:
    """The shape of a weight, whose sizes are known."""
    return [int(size) for size in x.shape]
