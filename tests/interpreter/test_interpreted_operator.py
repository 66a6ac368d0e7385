"""The Triton operator in the interpreter against the float64 definition: output and every gradient.

The interpreter computes in float32 whatever the kernels ask for: what half precision operands cost is simulated below.
"""

from typing import NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from gla_inputs import ALL_ORDERS, GATES, cast, make
from poison import arena, poisoned_memory
from tolerances import for_dtype, relative_rms

from metala_vision.kernels import GATE_FLOOR, gpu, gpu_backward, gpu_common, gpu_forward, gpu_plan
from metala_vision.kernels.reference import clamp_log_decay, recurrence

SCANS = [
    ("row", "row_reverse"),
    ("column_reverse",),
    ALL_ORDERS,
    ("column", "column_reverse"),
    ("row_reverse",),
    ("column_reverse", "row", "column"),
    ("column",),
    ("row",),
    ("row_reverse", "column"),
]
GRIDS = [(1, n) for n in (1, 15, 16, 17, 31, 32, 33)] + [(1, 7), (7, 7), (7, 9)]
WIDTHS = [(8, 8), (16, 32), (24, 8), (32, 64), (64, 24), (8, 64), (64, 64)]  # (K, V)
SEGMENTS = [1, 2, 3, 100]  # 100 is one segment for each chunk


class Case(NamedTuple):
    gate: str
    grid: tuple[int, int]
    scan: tuple[str, ...]
    widths: tuple[int, int]
    with_k: bool
    segments: int
    scale: float

    def __str__(self) -> str:
        size, widths = "x".join(map(str, self.grid)), "x".join(map(str, self.widths))
        key = "k" if self.with_k else "derived"
        return f"{self.gate}-{size}-{'+'.join(self.scan)}-K{widths}-{key}-{self.segments}-{self.scale}"


def covering_cases() -> list[Case]:
    """Every gate meets every grid, pair of widths, scan, number of segments and kind of key."""
    cases = []
    for i, gate in enumerate(GATES):
        for j, grid in enumerate(GRIDS):
            scan, widths = SCANS[(2 * i + j) % 9], WIDTHS[(3 * i + j) % 7]
            cases.append(Case(gate, grid, scan, widths, (i + j) % 2 == 1, SEGMENTS[(i + j // 2) % 4], 0.37 + 0.1 * i))
    return cases


# Many chunks, whose boundaries and those of the segments fall within rows and columns.
LARGE_CASES = [
    Case("tau1", (14, 14), ("row", "row_reverse"), (32, 64), False, 1, 0.2),
    Case("tau16", (15, 17), ("column", "column_reverse"), (32, 64), False, 3, 0.2),
    Case("floor", (14, 14), ("row",), (24, 8), True, 2, 0.4),
    Case("beyond", (15, 17), ("column_reverse",), (64, 64), False, 1, 0.1),
    Case("mixed", (14, 14), ("column",), (8, 64), True, 100, 0.4),
    Case("near_zero", (15, 17), ("row_reverse", "column"), (16, 32), False, 5, 0.3),
    Case("tau16", (7, 9), ("row", "column"), (1, 1), False, 2, 1.0),  # a recurrence of each channel
    Case("tau16", (37, 41), ("column_reverse",), (8, 16), False, 7, 0.37),
    Case("tau1", (7, 9), ("row", "row_reverse"), (16, 72), False, 2, 0.3),  # values in two parts
    Case("tau16", (5, 7), ("column", "row"), (8, 136), True, 1, 0.3),  # in three
]


def reference(inputs: dict, grad_out: torch.Tensor, grid, scan, scale) -> tuple[torch.Tensor, dict]:
    """Output and gradients by the definition, in float64."""
    leaves = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    gate = clamp_log_decay(leaves["log_decay"])
    k = leaves.get("k", -torch.expm1(gate))
    out = recurrence(leaves["q"], gate, leaves["v"], k, grid, scan, scale)
    return out.detach(), dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad_out.double())))


@pytest.fixture
def triton_run(monkeypatch):
    """Output and gradients of kernels/gpu.py, with NaN in and around all memory, cut into `segments`."""

    def run(inputs: dict, grad_out, grid, scan, scale, segments: int = 1) -> tuple[torch.Tensor, dict]:
        monkeypatch.setattr(gpu_plan, "choose_segments", lambda *sizes: segments)
        if inputs["q"].shape[-1] * inputs["v"].shape[-1] > 512:  # the interpreter takes its time for each program
            monkeypatch.setitem(gpu.COMBINE, "BE", 1024)
        q, log_decay, v, k = (arena(inputs[n]) if n in inputs else None for n in ("q", "log_decay", "v", "k"))
        with poisoned_memory(monkeypatch):
            out = gpu.forward(q, log_decay, v, k, grid, scan, scale)
            gradients = gpu.backward(arena(grad_out), q, log_decay, v, k, grid, scan, scale)
        names = ("q", "log_decay", "v", "k") if k is not None else ("q", "log_decay", "v")
        for name, gradient in zip(names, gradients):
            assert gradient.dtype == inputs[name].dtype
            assert gradient.is_contiguous()
        assert out.dtype == v.dtype
        assert out.is_contiguous()
        return out, dict(zip(names, gradients))

    return run


@pytest.mark.parametrize("segments", [None, 2])
def test_an_empty_batch(segments, monkeypatch):
    """Catches a division by the number of sequences, of which the last batch of a shard may have none."""
    if segments is not None:
        monkeypatch.setattr(gpu_plan, "choose_segments", lambda *sizes: segments)
    q, log_decay, v = torch.zeros(0, 33, 2, 16), torch.zeros(0, 33, 2, 16), torch.zeros(0, 33, 2, 32)
    out = gpu.forward(q, log_decay, v, None, (3, 11), ("row", "column"), 0.25)
    assert out.shape == v.shape
    found = gpu.backward(out, q, log_decay, v, None, (3, 11), ("row", "column"), 0.25)
    assert [tuple(x.shape) for x in found[:3]] == [(0, 33, 2, 16), (0, 33, 2, 16), (0, 33, 2, 32)]


def assert_close(actual: tuple, expected: tuple, dtype: torch.dtype) -> None:
    errors = {"out": relative_rms(actual[0], expected[0])}
    errors |= {name: relative_rms(actual[1][name], gradient) for name, gradient in expected[1].items()}
    too_large = {name: error for name, error in errors.items() if not error <= for_dtype(dtype, name)}
    assert not too_large, f"beyond the tolerances: {too_large}"


@pytest.mark.parametrize("case", covering_cases() + LARGE_CASES, ids=str)
def test_equals_reference(case, triton_run):
    """Catches a wrong index map, mask, boundary of chunks or segments, decay or gradient, and memory never written."""
    tokens = case.grid[0] * case.grid[1]
    sizes = dict(batch=1 + (tokens < 16), heads=1 + (tokens < 8 or tokens == 17))
    inputs = make(tokens, *case.widths, case.gate, case.with_k, **sizes)
    arguments = (inputs, torch.randn_like(inputs["v"]), case.grid, case.scan, case.scale)
    assert_close(triton_run(*arguments, segments=case.segments), reference(*arguments), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("gate", ["tau1", "tau16", "mixed"])
def test_half_precision_inputs(gate, dtype, triton_run):
    """Catches sums over the scan orders in half precision."""
    inputs = cast(make(35, 16, 32, gate, gate == "tau1", batch=1, heads=1), dtype)
    arguments = (inputs, torch.randn_like(inputs["v"]), (5, 7), ALL_ORDERS, 0.25)
    assert_close(triton_run(*arguments), reference(*arguments), dtype)


def test_mixed_dtypes(triton_run):
    """Catches one dtype taken for all: under autocast q and v come in bfloat16, the gate in float32."""
    inputs = make(49, batch=1)
    inputs |= {"q": inputs["q"].bfloat16(), "v": inputs["v"].bfloat16()}
    arguments = (inputs, torch.randn_like(inputs["v"]), (7, 7), ("row", "row_reverse"), 0.25)
    assert_close(triton_run(*arguments), reference(*arguments), torch.bfloat16)


@triton.jit
def rounded_dot(b_x, b_y, PRECISION: tl.constexpr):
    """`gpu_common.dot` on operands rounded to nearest as PRECISION says: 8 bits of bfloat16, 11 of TF32."""
    if PRECISION == "bf16":
        b_x = ((b_x.to(tl.int32, bitcast=True) + 0x8000) & -0x10000).to(tl.float32, bitcast=True)
        b_y = ((b_y.to(tl.int32, bitcast=True) + 0x8000) & -0x10000).to(tl.float32, bitcast=True)
    elif PRECISION == "tf32":
        b_x = ((b_x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        b_y = ((b_y.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.dot(b_x, b_y)


@pytest.mark.parametrize("widths", [(32, 64), (64, 64)], ids=["K32x64", "K64x64"])
@pytest.mark.parametrize("gate", ["tau1", "tau16", "near_zero"])
def test_tolerances_hold_with_the_operands_of_the_tensor_cores(gate, widths, triton_run, monkeypatch):
    """Catches an operand precision too coarse for the tolerances, simulated by rounding the operands."""
    for module in (gpu_forward, gpu_backward):
        monkeypatch.setattr(module, "dot", rounded_dot)
    monkeypatch.setattr(gpu_plan, "INTERPRETED", False)  # the precisions of a GPU
    inputs = cast(make(9 * 11, *widths, gate, batch=1, heads=1), torch.bfloat16)
    arguments = (inputs, torch.randn_like(inputs["v"]), (9, 11), ("row", "row_reverse"), 0.2)
    actual, expected = triton_run(*arguments), reference(*arguments)
    assert relative_rms(actual[0], expected[0]) > 1e-3  # else nothing was rounded
    assert_close(actual, expected, torch.bfloat16)


@pytest.mark.parametrize("scan", [("row",), ("row", "column")], ids="+".join)
def test_gradients_of_wide_values_are_rounded_once(scan, triton_run):
    """Catches parts that are rounded to half precision before they cancel, as those of a mean and its weights do."""
    inputs = cast(make(35, 16, 72, "tau16", batch=1, heads=1), torch.bfloat16)
    inputs["v"][..., 64:] = inputs["v"][..., :8]
    grad_out = torch.randn_like(inputs["v"])
    grad_out[..., 8:64] = 0
    grad_out[..., 64:] = -grad_out[..., :8] * 15 / 16
    arguments = (inputs, grad_out, (5, 7), scan, 0.3)
    actual, expected = triton_run(*arguments), reference(*arguments)
    for name in ("q", "log_decay"):
        assert relative_rms(actual[1][name], expected[1][name]) < for_dtype(torch.bfloat16, name)


# From a leaf of any layout to [2, 18, 2, X]
LAYOUTS = {
    "permuted": lambda x: torch.randn(2, 2, x, 18).permute(0, 3, 1, 2),
    "heads_first": lambda x: torch.randn(2, 2, 18, x).transpose(1, 2),
    "expanded_batch": lambda x: torch.randn(1, 18, 2, x).expand(2, -1, -1, -1),
    "expanded_channels": lambda x: torch.randn(2, 18, 2, 1).expand(-1, -1, -1, x),
    "every_second": lambda x: torch.randn(2, 36, 2, 2 * x)[:, ::2, :, ::2],
    "fused_projection": lambda x: torch.randn(2, 18, 7 * x)[:, :, 2 * x : 4 * x].unflatten(-1, (2, x)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_inputs(layout, triton_run):
    """Catches an input or gradient taken for contiguous, and gradients with the strides of their input."""
    inputs = {name: LAYOUTS[layout](x) for name, x in {"q": 8, "log_decay": 8, "v": 24, "k": 8}.items()}
    arguments = (inputs, LAYOUTS[layout](24), (3, 6), ("row", "column_reverse"), 0.37)
    assert not inputs["v"].is_contiguous()
    assert_close(triton_run(*arguments, segments=2), reference(*arguments), torch.float32)


def test_zero_stride_gradient(triton_run):
    """Catches a backward that reads the gradient of `.sum()`, an expanded scalar, as a full tensor."""
    inputs = make(35, batch=1)
    arguments = (inputs, torch.ones(1).expand(inputs["v"].shape), (5, 7), ("row", "row_reverse"), 0.37)
    assert_close(triton_run(*arguments), reference(*arguments), torch.float32)


@pytest.mark.parametrize("segments", [1, 2])
def test_repeats_are_equal_bits_and_sequences_independent(segments, triton_run):
    """Catches sums in an arbitrary sequence, and state that leaks from one image or head to another."""
    inputs = make(21)
    arguments = (torch.randn_like(inputs["v"]), (3, 7), ("row", "column_reverse"), 0.37, segments)
    first, second = triton_run(inputs, *arguments), triton_run(inputs, *arguments)
    alone = triton_run({n: x[1:, :, 1:] for n, x in inputs.items()}, arguments[0][1:, :, 1:], *arguments[1:])
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[0][1:, :, 1:], alone[0])
    for name, gradient in first[1].items():
        assert torch.equal(gradient, second[1][name])
        assert torch.equal(gradient[1:, :, 1:], alone[1][name])


def test_nan_is_not_hidden(triton_run):
    """Catches a clamp that turns a NaN gate into a valid one: training would go on with garbage."""
    inputs = make(35, batch=1, heads=1)
    inputs["log_decay"][0, 3, 0, 2] = float("nan")
    out, gradients = triton_run(inputs, torch.randn_like(inputs["v"]), (5, 7), ("row",), 0.37)
    assert out[0, 3:].isnan().all()
    assert gradients["log_decay"].isnan().any()


def test_number_of_segments():
    """Catches a cut where the batch fills the device already, and a long image left to a few processors."""
    choose = gpu_plan.choose_segments
    assert choose(256 * 3, chunks=13, units=132) == 1
    assert choose(3, chunks=13, units=132) <= 3
    assert 132 <= 3 * choose(3, chunks=1024, units=132) <= 3 * 132
    for sequences in (1, 2, 3, 12, 66, 67, 100_000):
        for chunks in (1, 2, 7, 13, 1024):
            assert 1 <= choose(sequences, chunks, 132) <= chunks


def test_constants_are_the_operators():
    """Catches a gate floor of the kernels' own."""
    assert gpu_common.FLOOR.value == GATE_FLOOR
    assert gpu_plan.CHUNK / 2 * -GATE_FLOOR < 80  # exp() in float32 stops at 88
