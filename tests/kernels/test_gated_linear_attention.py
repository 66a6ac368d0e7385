"""Every backend against the definition: output and every gradient over the grid of the design, section 7."""

import functools
from typing import NamedTuple

import pytest
import torch
from gla_inputs import ALL_ORDERS, GATES, cast, make, run
from tolerances import FLOAT32, FLOAT64, for_dtype, relative_rms

from metala_vision.kernels import available_backends, gated_linear_attention

BACKENDS = [name for name in available_backends() if name != "reference"]
RUNS = [("chunked", torch.float64), *((name, torch.float32) for name in BACKENDS)]
SCANS = [
    ("row",),
    ("column_reverse",),
    ("row", "row_reverse"),
    ("column",),
    ALL_ORDERS,
    ("row_reverse",),
    ("column", "column_reverse"),
    ("column_reverse", "row", "column"),
    ("row_reverse", "column"),
]
# Chunks of 16: one token, one short, full and just beyond; grids whose rows no chunk divides.
GRIDS = [(1, n) for n in (1, 15, 16, 17, 31, 32, 33, 49, 196)] + [(1, 7), (7, 9), (14, 14), (15, 17)]
WIDTHS = [(8, 8), (16, 32), (24, 8), (32, 64), (64, 24), (8, 64), (64, 16)]  # (K, V)


class Case(NamedTuple):
    gate: str
    grid: tuple[int, int]
    scan: tuple[str, ...]
    widths: tuple[int, int]
    with_k: bool
    scale: float | None
    heads: int = 2

    def __str__(self) -> str:
        key = "k" if self.with_k else "derived"
        size, widths = "x".join(map(str, self.grid)), "x".join(map(str, self.widths))
        return f"{self.gate}-{size}-{'+'.join(self.scan)}-K{widths}-{key}-{self.scale or 'default'}"


def covering_cases() -> list[Case]:
    """Every gate meets every grid, scan, pair of widths, kind of key and of scale; every grid meets most scans."""
    cases = []
    for i, gate in enumerate(GATES):
        for j, grid in enumerate(GRIDS):
            scale = 0.37 if (i + j // 2) % 2 else None
            cases.append(Case(gate, grid, SCANS[(i + j) % 9], WIDTHS[(2 * i + j) % 7], (i + j) % 2 == 1, scale))
    return cases


LARGE_CASES = [
    Case("tau1", (56, 56), ALL_ORDERS, (8, 16), False, None, heads=1),
    Case("floor", (56, 56), ("column_reverse",), (8, 8), True, None, heads=1),
    Case("tau16", (64, 64), ("row",), (16, 8), False, None, heads=1),
    Case("mixed", (64, 64), ("column",), (8, 8), False, 0.37, heads=1),
    Case("near_zero", (64, 64), ("row_reverse",), (8, 16), False, None, heads=1),
    # 260 chunks in 17 groups: the third level of the tree of states
    Case("tau16", (65, 64), ("column_reverse",), (8, 8), False, None, heads=1),
    Case("near_zero", (65, 64), ("row",), (8, 8), True, None, heads=1),
]


@functools.lru_cache(maxsize=1)
def expected(case: Case) -> tuple:
    """(inputs, keyword arguments, upstream gradient, output, gradients) of the float64 reference."""
    grid, (key, value) = case.grid, case.widths
    inputs = make(grid[0] * grid[1], key, value, case.gate, case.with_k, batch=case.heads, heads=case.heads)
    kwargs = dict(grid=grid, scan=case.scan, scale=case.scale)
    grad_out = torch.randn_like(inputs["v"])
    return inputs, kwargs, grad_out, *run(inputs, grad_out, torch.float64, backend="reference", **kwargs)


def assert_close(actual: tuple, out: torch.Tensor, gradients: dict, dtype: torch.dtype) -> None:
    errors = {"out": relative_rms(actual[0], out)}
    errors |= {name: relative_rms(actual[1][name], gradient) for name, gradient in gradients.items()}
    too_large = {name: error for name, error in errors.items() if not error <= for_dtype(dtype, name)}
    assert not too_large, f"beyond the tolerances: {too_large}"


# The reference of a case is computed once: its runs stand side by side.
@pytest.mark.parametrize(
    ("case", "backend", "dtype"),
    [
        pytest.param(case, backend, dtype, id=f"{case}-{backend}-{str(dtype)[6:]}")
        for case in covering_cases() + LARGE_CASES
        for backend, dtype in RUNS
    ],
)
def test_equals_reference(case, backend, dtype):
    """Catches a wrong mask, order, boundary, padding or gradient anywhere in the grid of shapes and gates."""
    inputs, kwargs, grad_out, out, gradients = expected(case)
    assert_close(run(inputs, grad_out, dtype, backend=backend, **kwargs), out, gradients, dtype)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gate", GATES)
def test_float32_at_4096_tokens_and_full_width(gate, backend):
    """Catches rounding that grows with the length, against chunked float64: the cases above tie it to the reference."""
    inputs = make(64 * 64, 32, 64, gate, batch=1, heads=2)
    kwargs = dict(grid=(64, 64), scan=ALL_ORDERS)
    grad_out = torch.randn_like(inputs["v"])
    out, gradients = run(inputs, grad_out, torch.float64, backend="chunked", **kwargs)
    assert_close(run(inputs, grad_out, torch.float32, backend=backend, **kwargs), out, gradients, torch.float32)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("grid", "with_k"), [((7, 9), False), ((15, 17), True)], ids=["7x9-derived", "15x17-k"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_inputs(dtype, gate, grid, with_k, backend):
    """Catches state, decay or sums kept in half precision."""
    inputs = cast(make(grid[0] * grid[1], 16, 32, gate, with_k), dtype)
    grad_out = torch.randn_like(inputs["v"])
    out, gradients = run(inputs, grad_out, torch.float64, grid=grid, scan=ALL_ORDERS, backend="reference")
    actual = run(inputs, grad_out, grid=grid, scan=ALL_ORDERS, backend=backend)
    assert actual[0].dtype == dtype
    assert {gradient.dtype for gradient in actual[1].values()} == {dtype}
    assert_close(actual, out, gradients, dtype)


@pytest.mark.parametrize("wide", ["q", "log_decay", "v", "k"])
def test_one_float64_input_makes_all_sums_float64(wide):
    """Catches a promotion that leaves out an input: the docstring promises float64 where any input is float64."""
    inputs = make(33, with_k=True)
    mixed = inputs | {wide: inputs[wide].double() + 1e-9 * torch.randn(inputs[wide].shape, dtype=torch.float64)}
    grad_out = torch.randn_like(inputs["v"])
    out, gradients = run(mixed, grad_out, torch.float64, backend="reference")
    actual = run(mixed, grad_out, backend="chunked")
    assert actual[0].dtype == mixed["v"].dtype
    assert actual[1][wide].dtype == torch.float64
    assert relative_rms(actual[1][wide], gradients[wide]) <= FLOAT64


def test_mixed_dtypes_of_autocast():
    """Catches a result in the dtype of q: under autocast q and v arrive in bfloat16 and the gate in float32."""
    inputs = make(49)
    mixed = {"q": inputs["q"].bfloat16(), "log_decay": inputs["log_decay"], "v": inputs["v"].bfloat16()}
    grad_out = torch.randn_like(mixed["v"])
    out, gradients = run(mixed, grad_out, torch.float64, backend="reference")
    actual = run(mixed, grad_out)
    assert actual[0].dtype == torch.bfloat16
    assert actual[1]["log_decay"].dtype == torch.float32
    assert_close(actual, out, gradients, torch.bfloat16)
    wide_v = run(mixed | {"v": inputs["v"]}, inputs["v"])
    assert wide_v[0].dtype == torch.float32


# From a leaf of any layout to [2, 63, 3, X]: what reshape, expand, slicing and a fused projection hand over.
LAYOUTS = {
    "permuted": (lambda x: (3, 2, x, 63), lambda leaf, x: leaf.permute(1, 3, 0, 2)),
    "expanded_batch": (lambda x: (1, 63, 3, x), lambda leaf, x: leaf.expand(2, -1, -1, -1)),
    "expanded_tokens": (lambda x: (2, 1, 3, x), lambda leaf, x: leaf.expand(-1, 63, -1, -1)),
    "expanded_channels": (lambda x: (2, 63, 3, 1), lambda leaf, x: leaf.expand(-1, -1, -1, x)),
    "every_second": (lambda x: (2, 126, 3, 2 * x), lambda leaf, x: leaf[:, ::2, :, ::2]),
    "fused_projection": (lambda x: (2, 63, 7 * x), lambda leaf, x: leaf[:, :, 2 * x : 5 * x].unflatten(-1, (3, x))),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_inputs_and_upstream_gradient(layout, backend):
    """Catches a kernel that takes its inputs, or the gradient that arrives, for contiguous."""
    shape, view = LAYOUTS[layout]
    widths = {"q": 8, "log_decay": 8, "v": 24, "k": 8}
    grad_out = torch.randn(24, 63, 3, 2).permute(3, 1, 2, 0)
    leaves = {n: GATES["tau1"](shape(x)) if n == "log_decay" else torch.randn(shape(x)) for n, x in widths.items()}

    def output_and_gradients(dtype, name):
        own = {n: leaf.to(dtype).requires_grad_() for n, leaf in leaves.items()}
        views = {n: view(leaf, widths[n]) for n, leaf in own.items()}
        assert not any(x.is_contiguous() for x in views.values())
        out = gated_linear_attention(**views, grid=(7, 9), scan=ALL_ORDERS, backend=name)
        return out, dict(zip(own, torch.autograd.grad(out, list(own.values()), grad_out.to(dtype))))

    assert not grad_out.is_contiguous()
    assert_close(
        output_and_gradients(torch.float32, backend), *output_and_gradients(torch.float64, "reference"), torch.float32
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_k", [False, True], ids=["derived", "k"])
@pytest.mark.parametrize("gate", ["tau1", "tau16", "mixed"])
def test_zero_stride_upstream_gradient(gate, with_k, backend):
    """Catches a backward that reads the gradient of `.sum()`, an expanded scalar, as a full tensor."""
    inputs = make(7 * 9, gate=gate, with_k=with_k)
    kwargs = dict(grid=(7, 9), scan=ALL_ORDERS)
    ones = torch.ones(1).expand(inputs["v"].shape)
    out, gradients = run(inputs, ones, torch.float64, backend="reference", **kwargs)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    actual = gated_linear_attention(**leaves, backend=backend, **kwargs)
    actual.sum().backward()
    assert_close((actual, {name: x.grad for name, x in leaves.items()}), out, gradients, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needed", ["q", "log_decay", "v", "k"])
def test_gradient_of_one_input_alone(needed, backend):
    """Catches a backward that counts on every input asking for its gradient."""
    inputs = make(33, with_k=True)
    grad_out = torch.randn_like(inputs["v"])
    _, gradients = run(inputs, grad_out, torch.float64, backend="reference")
    leaf = inputs[needed].clone().requires_grad_()
    gated_linear_attention(**inputs | {needed: leaf}, backend=backend).backward(grad_out)
    assert relative_rms(leaf.grad, gradients[needed]) <= FLOAT32


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_left_alone(backend):
    """Catches a kernel that clamps or rescales in place."""
    inputs = make(33, gate="beyond", with_k=True)
    before = {name: x.clone() for name, x in inputs.items()}
    run(inputs, torch.randn_like(inputs["v"]), backend=backend)
    assert all(torch.equal(inputs[name], x) for name, x in before.items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_repeats_bit_for_bit(backend):
    """Catches sums in an order that changes from run to run, and a result that reads stale memory."""
    inputs = make(15 * 17)
    grad_out = torch.randn_like(inputs["v"])
    first, second = (run(inputs, grad_out, grid=(15, 17), scan=ALL_ORDERS, backend=backend) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    """Catches a division or a launch over zero images: the last batch of a shard may be empty."""
    out, gradients = run(make(33, batch=0), torch.randn(0, 33, 2, 16), backend=backend)
    assert out.shape == (0, 33, 2, 16)
    assert gradients["log_decay"].shape == (0, 33, 2, 8)
    for sizes in (dict(batch=0), dict(heads=0)):  # with nothing to cut into blocks this took for ever
        inputs = make(4, 8, 0, **{"batch": 1, **sizes})
        assert gated_linear_attention(**inputs, grid=(2, 2), backend=backend).numel() == 0
