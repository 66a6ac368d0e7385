"""Gated linear attention for runtimes of graphs: few, large products, and as many nodes for any number of tokens.

The tokens are cut into chunks of T. Within a chunk the decay between two tokens is exp(sum up to the one) over exp(sum
up to the other), so that a scan is a masked product, as in `kernels.chunked`; with sums counted from the middle of a
chunk no exponent reaches what float32 cannot hold, even at the floor of the gate. The states that enter the M chunks
come from two levels of masked products, over about sqrt(M) groups of about sqrt(M) chunks: a loop would be one of small
nodes, and all pairs of chunks would be as many as their number squared.

Shapes: B batch, N tokens, H heads, M chunks, T tokens of a chunk, K key and V value channels of a head, D groups of R
chunks. The gate is p = -log_decay / 2, which is positive.
"""

import numpy as np

from metala_vision.kernels.reference import GATE_FLOOR

from .onnx_values import FLOAT, INT64, Value, constant, count, ints, op, part, shape, transposed

# T / 2 tokens at the floor decay by exp(-80), and float32 ends at exp(-87). Shorter chunks are more, smaller products.
CHUNK = 32
GATE_CEILING = -GATE_FLOOR / 2  # of p


class Sequence:
    """The tokens of a grid in the order of some scans along one axis, in chunks.

    Args:
        rows: of the grid, a vector of one element.
        cols: likewise.
        orders: scan orders along one axis.
    """

    def __init__(self, rows: Value, cols: Value, orders: tuple[str, ...]):
        self.tokens = op.Mul(rows, cols)
        self.chunks = op.Div(op.Add(self.tokens, ints(CHUNK - 1)), ints(CHUNK))
        padded = op.Mul(self.chunks, ints(CHUNK))
        self.padding = op.Sub(padded, self.tokens)
        self.reverses = [order.endswith("_reverse") for order in orders]
        self.by_columns = orders[0].startswith("column")
        self.both = len(orders) == 2
        self.first = self.padding if self.reverses == [True] else ints(0)
        self.sequence = None
        if self.by_columns:
            self.sequence = _exchanged(count(self.tokens), rows, cols)
            self.inverse = _exchanged(count(self.tokens), cols, rows)
        if not self.both:
            # A token is repeated where the scan comes last, which changes nothing that is kept.
            places = op.Sub(count(padded), self.first)
            places = op.Min(op.Max(places, ints(0)), op.Sub(self.tokens, ints(1)))
            self.places = places if self.sequence is None else op.Gather(self.sequence, places, axis=0)

    def split(self, x: Value, channels: int) -> Value:
        """[B, N, C] -> [B, M, T, C]."""
        if not self.both:
            x = op.Gather(x, self.places, axis=1)
        else:  # tokens of zeros change nothing in either direction
            x = x if self.sequence is None else op.Gather(x, self.sequence, axis=1)
            x = op.Pad(x, shape(0, 0, 0, 0, self.padding, 0))
        return op.Reshape(x, shape(0, self.chunks, CHUNK, channels))

    def join(self, x: Value, channels: int) -> Value:
        """The inverse of `split`."""
        x = op.Reshape(x, ints(0, -1, channels))
        if self.by_columns:
            return op.Gather(x, op.Add(self.inverse, self.first), axis=1)
        return part(x, self.first, op.Add(self.first, self.tokens), axis=1)

    def scan(self, q: Value, p: Value, k: Value, v: Value) -> Value:
        """[B, H, M, T, K or V] -> the sum over the scans [B, H, M, T, V]; a token's own term counts once."""
        passes = [_scan(q, p, k, v, self.chunks, back, own=i == 0) for i, back in enumerate(self.reverses)]
        return passes[0] if len(passes) == 1 else op.Add(*passes)


def _exchanged(x: Value, rows: Value, cols: Value) -> Value:
    """What belongs to the tokens of a grid, row by row, column by column."""
    return op.Reshape(op.Transpose(op.Reshape(x, shape(rows, cols)), perm=[1, 0]), ints(-1))


def heads_first(x: Value, num_heads: int, channels: int) -> Value:
    """[B, M, T, H X] -> [B, H, M, T, X]."""
    return op.Transpose(op.Reshape(x, ints(0, 0, CHUNK, num_heads, channels)), perm=[0, 3, 1, 2, 4])


def heads_last(x: Value, channels: int) -> Value:
    """[B, H, M, T, X] -> [B, M, T, C], the C = H X channels of all heads."""
    return op.Reshape(op.Transpose(x, perm=[0, 2, 3, 1, 4]), ints(0, 0, CHUNK, channels))


def _scan(q: Value, p: Value, k: Value, v: Value, chunks: Value, reverse: bool, own: bool) -> Value:
    """One scan; `own`: whether a token sees itself."""
    upto = np.tril(np.ones((CHUNK, CHUNK)))
    upto = upto.T if reverse else upto
    middle = upto[CHUNK // 2 if reverse else CHUNK // 2 - 1]
    decay = op.Exp(op.MatMul(constant(-2 * (upto - middle)), p))
    # What is left of the state at the middle of a chunk, and of what stands at the middle at its end, [B, H, M, 1, K].
    halves = [op.MatMul(constant(-2 * half[None]), p) for half in (middle, 1 - middle)]
    left, later = (op.Exp(half) for half in halves)
    q, k = op.Mul(q, decay), op.Div(k, decay)
    across = op.Transpose(k, perm=[0, 1, 2, 4, 3])
    seen = constant(upto if own else upto - np.eye(CHUNK), np.bool_)
    scores = op.Where(seen, op.MatMul(q, across), constant(0.0))
    # Never the product of both: exp(-160) is zero in float32, whatever it is multiplied by afterwards.
    update = op.Mul(op.MatMul(across, v), op.Transpose(later, perm=[0, 1, 2, 4, 3]))
    entering = _states(op.Add(*halves), update, chunks, reverse)
    return op.Add(op.MatMul(scores, v), op.MatMul(op.Mul(q, left), entering))


def _states(total: Value, update: Value, chunks: Value, reverse: bool) -> Value:
    """The states that enter each chunk.

    Args:
        total: log-decay of a chunk [B, H, M, 1, K].
        update: what a chunk adds to the state that leaves it [B, H, M, K, V].
        chunks: M.
        reverse: whether the last chunk comes first.

    Returns:
        [B, H, M, K, V].
    """
    size = op.Cast(op.Ceil(op.Sqrt(op.Cast(chunks, to=FLOAT))), to=INT64)  # R
    groups = op.Div(op.Sub(op.Add(chunks, size), ints(1)), size)  # D
    padding = shape(0, 0, 0, 0, 0, 0, 0, op.Sub(op.Mul(groups, size), chunks), 0, 0)
    total = op.Reshape(op.Pad(total, padding), shape(0, 0, groups, size, -1))
    total = op.Transpose(total, perm=[0, 1, 4, 2, 3])  # [B, H, K, D, R]
    channels = op.Shape(update, start=3)
    update = op.Reshape(op.Pad(update, padding), shape(0, 0, groups, size, channels))
    update = op.Transpose(update, perm=[0, 1, 4, 2, 3, 5])  # [B, H, K, D, R, V]
    before, before_group = _before(size, reverse), _before(groups, reverse)
    # Chunks of a group: decay[c, j] is what is left, where c begins, of what j has added, [B, H, K, D, R, R].
    decay = op.Mul(op.Exp(op.MatMul(before, op.Mul(_column(total), before))), before)
    within = op.MatMul(decay, update)
    # What a group adds, and what enters it, [B, H, K, D, V].
    of_group = op.Squeeze(op.MatMul(_row(op.Exp(op.MatMul(total, before))), update), ints(-2))
    total_of_group = op.ReduceSum(total, ints(-1), keepdims=1)
    decay = op.Mul(op.Exp(op.MatMul(before_group, op.Mul(total_of_group, before_group))), before_group)
    entering_group = op.MatMul(decay, of_group)
    reached = op.Exp(op.MatMul(total, transposed(before)))
    entering = op.Add(within, op.Mul(_column(reached), _row(entering_group)))
    entering = op.Reshape(op.Transpose(entering, perm=[0, 1, 3, 4, 2, 5]), shape(0, 0, op.Mul(groups, size), channels))
    return part(entering, 0, chunks, axis=2)


def _before(n: Value, reverse: bool) -> Value:
    """[n, n]: 1 where what the column stands for comes before what the row stands for, and 0 elsewhere."""
    places = count(n)
    rows, columns = _column(places), op.Unsqueeze(places, ints(0))
    return op.Cast(op.Less(rows, columns) if reverse else op.Greater(rows, columns), to=FLOAT)


def _column(x: Value) -> Value:
    return op.Unsqueeze(x, ints(-1))


def _row(x: Value) -> Value:
    return op.Unsqueeze(x, ints(-2))
