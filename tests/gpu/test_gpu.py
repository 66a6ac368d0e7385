"""The Triton kernels on a real GPU, through the public operator: pytest -m gpu tests/gpu"""

import sys
from pathlib import Path

import pytest
import torch
from metala_vision.kernels import gated_linear_attention, mixer
from tolerances import FLOAT32, for_dtype, relative_rms

sys.path.insert(0, str(Path(__file__).parent.parent / "kernels"))
from gla_inputs import ALL_ORDERS, GATES, cast, make, run  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]
SCANS = [("row",), ("row", "row_reverse"), ("column_reverse",), ALL_ORDERS, ("column", "row_reverse"), ("column",)]
GRIDS = [(1, n) for n in (1, 15, 16, 17, 31, 32, 33, 49, 196)] + [(1, 7), (7, 9), (14, 14), (15, 17), (56, 56)]
WIDTHS = [(8, 8), (16, 32), (24, 8), (32, 64), (64, 24), (8, 64), (64, 64)]  # (K, V)
CASES = [
    (gate, grid, SCANS[(i + j) % 6], WIDTHS[(3 * i + j) % 7], (i + j) % 2 == 1)
    for i, gate in enumerate(GATES)
    for j, grid in enumerate(GRIDS)
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _device():
    with torch.device("cuda"):
        yield


def assert_close(actual: tuple, expected: tuple, dtype: torch.dtype) -> None:
    errors = {"out": relative_rms(actual[0], expected[0])}
    errors |= {name: relative_rms(actual[1][name], gradient) for name, gradient in expected[1].items()}
    too_large = {name: error for name, error in errors.items() if not error <= for_dtype(dtype, name)}
    assert not too_large, f"beyond the tolerances: {too_large}"


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda x: str(x)[6:])
@pytest.mark.parametrize(
    ("gate", "grid", "scan", "widths", "with_k"),
    CASES,
    ids=lambda x: "x".join(map(str, x)) if isinstance(x, tuple) else str(x),
)
def test_equals_reference(gate, grid, scan, widths, with_k, dtype):
    """Catches what the interpreter cannot see: races, operand precision, compilers. The oracle is chunked float64."""
    inputs = cast(make(grid[0] * grid[1], *widths, gate, with_k), dtype)
    kwargs = dict(grid=grid, scan=scan, scale=0.37)
    grad_out = torch.randn_like(inputs["v"])
    expected = run(inputs, grad_out, torch.float64, backend="chunked", **kwargs)
    assert_close(run(inputs, grad_out, backend="triton", **kwargs), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda x: str(x)[6:])
@pytest.mark.parametrize("scan", [("row", "row_reverse"), ALL_ORDERS], ids=["row", "cross"])
def test_image_of_2048_pixels(scan, dtype):
    """Catches errors of many segments: 16384 tokens, too few sequences to fill a device."""
    inputs = cast(make(128 * 128, 32, 64, "tau16", batch=1, heads=3), dtype)
    kwargs = dict(grid=(128, 128), scan=scan)
    grad_out = torch.randn_like(inputs["v"])
    expected = run(inputs, grad_out, torch.float64, backend="chunked", **kwargs)
    assert_close(run(inputs, grad_out, backend="triton", **kwargs), expected, dtype)


def test_more_sequences_than_65535():
    """Catches batch * heads on a grid dimension that ends at 65535."""
    inputs = make(3, 8, 8, batch=16_400, heads=4)
    grad_out = torch.randn_like(inputs["v"])
    expected = run(inputs, grad_out, torch.float64, backend="chunked", grid=(1, 3), scan=("row", "row_reverse"))
    actual = run(inputs, grad_out, backend="triton", grid=(1, 3), scan=("row", "row_reverse"))
    assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize("shape", [(8, 14, 14), (1, 64, 64)], ids=["segments1", "segments"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda x: str(x)[6:])
def test_repeats_are_equal_bits(shape, dtype):
    """Catches races and atomics."""
    batch, rows, cols = shape
    inputs = cast(make(rows * cols, 32, 64, batch=batch, heads=3), dtype)
    grad_out = torch.randn_like(inputs["v"])
    first, *others = (run(inputs, grad_out, backend="triton", grid=(rows, cols), scan=ALL_ORDERS) for _ in range(5))
    for out, gradients in others:
        assert torch.equal(out, first[0])
        assert all(torch.equal(gradients[name], gradient) for name, gradient in first[1].items())


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_compiles_as_one_graph(backward):
    """Catches a graph break, and a fake that disagrees with the kernel."""
    inputs = make(63, 16, 32)
    leaves = {name: x.requires_grad_(backward) for name, x in inputs.items()}

    def call(**tensors):
        return gated_linear_attention(**tensors, grid=(7, 9), scan=("row", "column_reverse"), backend="triton") * 2

    out, expected = torch.compile(call, fullgraph=True)(**leaves), call(**leaves)
    assert relative_rms(out, expected) <= FLOAT32
    if backward:
        gradients = (torch.autograd.grad(x.square().sum(), list(leaves.values())) for x in (out, expected))
        assert all(relative_rms(x, y) <= FLOAT32 for x, y in zip(*gradients))


def test_strided_inputs_on_the_current_stream():
    """Catches inputs taken for contiguous, and launches on a stream that does not wait for them."""
    inputs = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in make(196, 32, 64).items()}
    grad_out = torch.ones((), device="cuda").expand(inputs["v"].shape)
    kwargs = dict(grid=(14, 14), scan=("row", "row_reverse"))
    expected = run(inputs, grad_out, torch.float64, backend="chunked", **kwargs)
    with torch.cuda.stream(stream := torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.default_stream())
        actual = run(inputs, grad_out, backend="triton", **kwargs)
    torch.cuda.synchronize()
    assert_close(actual, expected, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda x: str(x)[6:])
@pytest.mark.parametrize("shape", [(4, 14, 14), (1, 64, 64)], ids=["segments1", "segments"])
@pytest.mark.parametrize("scan", [("row", "row_reverse"), ALL_ORDERS], ids=["row", "cross"])
def test_fused_mixer(scan, shape, dtype):
    """Catches the fused kernels against the same operator in float64, which runs unfused."""
    batch, rows, cols = shape
    heads, channels = 3, 192
    leaves = [torch.randn(batch, rows * cols, 3 * channels).to(dtype), 0.3 * torch.randn(channels)]
    leaves = [x.requires_grad_() for x in (*leaves, torch.randn(channels // 2))]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    grad_y = torch.randn(batch, rows * cols, channels).to(dtype)
    results = []
    for tensors in (leaves, wide):
        y = mixer(*tensors, heads, rows, cols, ",".join(scan))
        results.append((y, *torch.autograd.grad(y, tensors, grad_y.to(y.dtype))))
    y, projected, *parameters = ((a, b) for a, b in zip(*results))
    sizes = [channels // 2, channels // 2, channels, channels]
    named = {"y": y} | {f"parameter {i}": pair for i, pair in enumerate(parameters)}
    named |= dict(zip(("q", "log_decay", "v", "z"), zip(*(x.split(sizes, dim=-1) for x in projected))))
    errors = {name: relative_rms(*pair) for name, pair in named.items()}
    too_large = {name: error for name, error in errors.items() if not error <= for_dtype(dtype, name)}
    assert not too_large, f"beyond the tolerances: {too_large}"
