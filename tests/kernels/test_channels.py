"""The C scan of heads with one key and one value channel against the definition: output and every gradient."""

import pytest
import torch
from gla_inputs import ALL_ORDERS, GATES, cast, make, run
from tolerances import for_dtype, relative_rms

from metala_vision.kernels import available_backends, cpu_problem, gated_linear_attention

pytestmark = pytest.mark.skipif("cpu" not in available_backends(), reason="no C compiler, and so no C kernels")

# Heads that fill no vector, some vectors and a rest, and whole vectors; grids, orders and images in turns of their own.
HEADS = (1, 5, 37, 70, 192)
GRIDS = ((1, 1), (1, 33), (7, 9), (14, 14), (31, 2))
SCANS = (("row",), ("column_reverse", "row"), ALL_ORDERS, ("row_reverse", "column", "column_reverse"), ("column",))
CASES = [
    (gate, HEADS[(i + j) % 5], GRIDS[j], SCANS[(2 * i + j) % 5], (i + j) % 2 == 1, 1 + (i + 2 * j) % 3)
    for i, gate in enumerate(GATES)
    for j in range(5)
]


def check(inputs: dict, dtype: torch.dtype, against: str = "reference", **kwargs) -> None:
    inputs = cast(inputs, dtype)
    grad_out = torch.randn_like(inputs["v"])
    out, gradients = run(inputs, grad_out, torch.float64, backend=against, **kwargs)
    actual = run(inputs, grad_out, backend="cpu", **kwargs)
    assert relative_rms(actual[0], out) <= for_dtype(dtype, "out")
    for name, gradient in gradients.items():
        assert actual[1][name].dtype == dtype
        assert relative_rms(actual[1][name], gradient) <= for_dtype(dtype, name), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    ("gate", "heads", "grid", "scan", "with_k", "batch"),
    [pytest.param(*case, id=f"{case[0]}-H{case[1]}-{case[2][0]}x{case[2][1]}-{len(case[3])}") for case in CASES],
)
def test_equals_reference(gate, heads, grid, scan, with_k, batch, dtype):
    """Catches a wrong order, own term, clamp, tail of a vector or gradient."""
    inputs = make(grid[0] * grid[1], 1, 1, gate, with_k, batch, heads)
    check(inputs, dtype, grid=grid, scan=scan, scale=0.37 if with_k else None)


@pytest.mark.long
@pytest.mark.parametrize("gate", ["tau16", "near_zero"])
def test_many_tokens_and_heads(gate):
    """Catches rounding that drifts with the length, and heads cut into several blocks for memory.

    Beside the chunked form: the definition would take minutes.
    """
    inputs = make(64 * 66, 1, 1, gate, batch=1, heads=320)
    check(inputs, torch.float32, against="chunked", grid=(64, 66), scan=("column", "row_reverse"))


@pytest.mark.parametrize("shape", [(0, 63, 21, 1), (2, 63, 0, 1)], ids=["images", "heads"])
def test_nothing_at_all(shape):
    """Catches a division by the number of images, which ends the whole process."""
    q, log_decay, v = (torch.zeros(shape, requires_grad=True) for _ in range(3))
    out = gated_linear_attention(q, log_decay, v, grid=(7, 9), scan=ALL_ORDERS, backend="cpu")
    out.sum().backward()
    assert out.shape == q.grad.shape == log_decay.grad.shape == v.grad.shape == shape


def test_any_strides():
    """Catches a layout taken for granted: heads apart in memory, expanded inputs, and a gradient of stride zero."""
    inputs = make(63, 1, 1, with_k=True, batch=3, heads=21)
    kwargs = dict(grid=(7, 9), scan=ALL_ORDERS, backend="cpu")
    out, gradients = run(inputs, torch.ones(3, 63, 21, 1), **kwargs)
    apart = {name: x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3) for name, x in inputs.items()}
    again, others = run(apart, torch.ones(1).expand(3, 63, 21, 1), **kwargs)
    assert torch.equal(out, again)
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())
    one = inputs["q"][:1, :1]
    expanded = gated_linear_attention(one.expand(3, 63, 21, 1), inputs["log_decay"], inputs["v"], **kwargs)
    filled = gated_linear_attention(one.repeat(3, 63, 1, 1), inputs["log_decay"], inputs["v"], **kwargs)
    assert torch.equal(expanded, filled)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(threads, monkeypatch):
    """Catches blocks of heads that overlap or are left out: one image of 70 heads is cut for threads."""
    inputs = make(63, 1, 1, batch=1, heads=70)
    kwargs = dict(grid=(7, 9), scan=("column", "row"), backend="cpu")
    grad_out = torch.randn_like(inputs["v"])
    out, gradients = run(inputs, grad_out, **kwargs)
    monkeypatch.setattr(cpu_problem.native, "num_threads", lambda: threads)
    again, others = run(inputs, grad_out, **kwargs)
    assert torch.equal(out, again)
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())
