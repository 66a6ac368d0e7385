"""The definition against the formula written out a second time, in plain Python and without a state."""

import itertools
import math

import pytest
import torch
from gla_inputs import ALL_ORDERS, cast, make
from tolerances import FLOAT64, relative_rms

from metala_vision.kernels import attention_map, gated_linear_attention, scan_order
from metala_vision.kernels.reference import recurrence

ORDER_SETS = [c for size in range(1, 5) for c in itertools.combinations(ALL_ORDERS, size)]
# The token visited first has the smallest key; row-major token i sits at (i // cols, i % cols).
VISIT_KEY = {
    "row": lambda r, c: (r, c),
    "row_reverse": lambda r, c: (-r, -c),
    "column": lambda r, c: (c, r),
    "column_reverse": lambda r, c: (-c, -r),
}


def naive_map(q, log_decay, k, grid, scan, scale):
    """A[t][s] of one batch and head by its formula, lists of floats in and out."""
    tokens = range(grid[0] * grid[1])
    result = [[0.0 for _ in tokens] for _ in tokens]
    for t in tokens:
        for s in tokens:
            for order in scan:
                key = [VISIT_KEY[order](i // grid[1], i % grid[1]) for i in tokens]
                if key[s] < key[t]:
                    for channel in range(len(q[t])):
                        decay = 1.0
                        for j in tokens:
                            if key[s] < key[j] <= key[t]:
                                decay *= math.exp(log_decay[j][channel])
                        result[t][s] += scale * q[t][channel] * decay * k[s][channel]
        result[t][t] = scale * sum(a * b for a, b in zip(q[t], k[t]))  # once, whatever the number of orders
    return result


def naive(inputs, grid, scan, scale):
    """(maps [B, H, N, N], out [B, N, H, V]) by the naive formula."""
    q, log_decay, k, v = (inputs[name] for name in ("q", "log_decay", "k", "v"))
    batch, _, heads, _ = q.shape
    maps = torch.tensor(
        [
            [naive_map(*(x[b, :, h].tolist() for x in (q, log_decay, k)), grid, scan, scale) for h in range(heads)]
            for b in range(batch)
        ],
        dtype=torch.float64,
    )
    out = torch.zeros_like(v)
    for b, h, t, s in itertools.product(range(batch), range(heads), range(q.shape[1]), range(q.shape[1])):
        out[b, t, h] += maps[b, h, t, s] * v[b, s, h]
    return maps, out


@pytest.mark.parametrize("scan", ORDER_SETS, ids="+".join)
@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (4, 1), (2, 3), (3, 2)], ids=lambda g: f"{g[0]}x{g[1]}")
def test_recurrence_and_map_equal_the_naive_formula(grid, scan):
    """Catches a wrong visiting order, an own term counted once per order, and a decay shifted by one token."""
    tokens = grid[0] * grid[1]
    inputs = cast(make(tokens, key=2, value=3, gate="tau1", with_k=True, batch=1), torch.float64)
    maps, out = naive(inputs, grid, scan, scale=0.7)
    q, log_decay, v, k = inputs["q"], inputs["log_decay"], inputs["v"], inputs["k"]
    assert relative_rms(attention_map(q, log_decay, k, grid, scan, 0.7), maps) <= FLOAT64
    assert relative_rms(recurrence(q, log_decay, v, k, grid, scan, 0.7), out) <= FLOAT64


@pytest.mark.parametrize("gate", ["tau1", "tau16", "mixed", "floor"])
def test_derived_key_and_default_scale_equal_the_naive_formula(gate):
    """Catches k = alpha for k = 1 - alpha, and a scale of K or of sqrt(K) for 1 / sqrt(K)."""
    inputs = cast(make(6, key=4, value=2, gate=gate, batch=2), torch.float64)
    alpha = [math.exp(g) for g in inputs["log_decay"].flatten().tolist()]
    key = torch.tensor([1 - a for a in alpha], dtype=torch.float64).view_as(inputs["log_decay"])
    _, out = naive(inputs | {"k": key}, (2, 3), ALL_ORDERS, scale=1 / math.sqrt(4))
    actual = gated_linear_attention(**inputs, grid=(2, 3), scan=ALL_ORDERS, backend="reference")
    assert relative_rms(actual, out) <= FLOAT64


@pytest.mark.parametrize("scan", ORDER_SETS, ids="+".join)
def test_map_times_v_is_the_recurrence_on_a_larger_grid(scan):
    """Catches a map and a recurrence that agree on toys alone: rows and columns differ in length, several heads."""
    inputs = cast(make(7 * 9, key=8, value=5, with_k=True), torch.float64)
    q, log_decay, v, k = inputs["q"], inputs["log_decay"], inputs["v"], inputs["k"]
    weights = attention_map(q, log_decay, k, (7, 9), scan, 0.3)
    out = torch.einsum("bhts,bshv->bthv", weights, v)
    assert relative_rms(recurrence(q, log_decay, v, k, (7, 9), scan, 0.3), out) <= FLOAT64


def test_scan_order_visits():
    """Catches swapped rows and columns, and a reversal of each row in place of the whole sequence."""
    assert scan_order("row", 2, 3).tolist() == [0, 1, 2, 3, 4, 5]
    assert scan_order("row_reverse", 2, 3).tolist() == [5, 4, 3, 2, 1, 0]
    assert scan_order("column", 2, 3).tolist() == [0, 3, 1, 4, 2, 5]
    assert scan_order("column_reverse", 2, 3).tolist() == [5, 2, 4, 1, 3, 0]
