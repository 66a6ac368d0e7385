"""The Triton kernels on a real GPU, through the public operators: pytest -m gpu tests/gpu"""

import sys
from pathlib import Path

import pytest
import torch
from tolerances import FLOAT32, relative_rms

from metala_vision.kernels import gated_linear_attention, mixer
from metala_vision.layers import MIXERS
from metala_vision.layers.mixers.registry import build_mixer

sys.path.insert(0, str(Path(__file__).parent.parent / "kernels"))
from gla_inputs import ALL_ORDERS, GATES, cast, make, run  # noqa: E402

pytestmark = pytest.mark.gpu
SCANS = [("row",), ("row", "row_reverse"), ("column_reverse",), ALL_ORDERS, ("column", "row_reverse"), ("column",)]
GRIDS = [(1, n) for n in (1, 15, 16, 17, 31, 32, 33, 49, 196)] + [(1, 7), (7, 9), (14, 14), (15, 17), (56, 56)]
WIDTHS = [(8, 8), (16, 32), (24, 8), (32, 64), (64, 24), (8, 64), (64, 64), (64, 72)]  # (K, V)
CASES = [
    pytest.param(
        gate,
        grid,
        SCANS[(i + j) % 6],
        WIDTHS[(3 * i + j) % 8],
        (i + j) % 2 == 1,
        marks=[pytest.mark.rehearsed] if grid == (1, 15) and i < 2 else [],
    )
    for i, gate in enumerate(GATES)
    for j, grid in enumerate(GRIDS)
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# A sequence alone fills no device: it is cut into segments, as many as its tokens allow.
LONG = [pytest.param((8, 9), marks=pytest.mark.rehearsed), (64, 64), (128, 128), (181, 257)]
SHAPES = [pytest.param((1, 4, 5), marks=pytest.mark.rehearsed), (8, 14, 14), (1, 64, 64), (1, 256, 256)]
OFFSET = 2**31 + 64  # elements: beyond what 32 bits address


def name_of(value) -> str:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def results(inputs: dict, grad_out: torch.Tensor, dtype: torch.dtype | None = None, **kwargs) -> dict:
    """ "out", and the gradient of each input by its name."""
    out, gradients = run(inputs, grad_out, dtype, **kwargs)
    return {"out": out, **gradients}


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(("gate", "grid", "scan", "widths", "with_k"), CASES, ids=name_of)
def test_equals_reference(gate, grid, scan, widths, with_k, dtype, backend, compare):
    """Catches what the interpreter cannot see: races, operand precision, compilers. The oracle is chunked float64."""
    inputs = cast(make(grid[0] * grid[1], *widths, gate, with_k), dtype)
    kwargs = dict(grid=grid, scan=scan, scale=0.37)
    grad_out = torch.randn_like(inputs["v"])
    expected = results(inputs, grad_out, torch.float64, backend="chunked", **kwargs)
    compare(results(inputs, grad_out, backend=backend, **kwargs), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("scan", [("row",), ("row", "row_reverse"), ALL_ORDERS], ids=["row", "rows", "cross"])
@pytest.mark.parametrize("grid", LONG, ids=name_of)
def test_many_segments(grid, scan, dtype, backend, compare):
    """Catches a segment that is lost, or that starts from another one's state; 128x128 are 2048 pixels."""
    inputs = cast(make(grid[0] * grid[1], 32, 64, "tau16", batch=1, heads=3), dtype)
    kwargs = dict(grid=grid, scan=scan)
    grad_out = torch.randn_like(inputs["v"])
    expected = results(inputs, grad_out, torch.float64, backend="chunked", **kwargs)
    compare(results(inputs, grad_out, backend=backend, **kwargs), expected, dtype)


@pytest.mark.parametrize("batch", [pytest.param(2, marks=pytest.mark.rehearsed), 16_400])
def test_more_sequences_than_65535(batch, backend, compare):
    """Catches batch * heads on a grid dimension that ends at 65535."""
    inputs = make(3, 8, 8, batch=batch, heads=4)
    grad_out = torch.randn_like(inputs["v"])
    kwargs = dict(grid=(1, 3), scan=("row", "row_reverse"))
    expected = results(inputs, grad_out, torch.float64, backend="chunked", **kwargs)
    compare(results(inputs, grad_out, backend=backend, **kwargs), expected, torch.float32)


@pytest.mark.parametrize("axis", ["batch", "token", "head"])
def test_strides_beyond_32_bits(axis, backend, compare):
    """Catches an address in 32 bits: the second image, token or head lies more than 2^31 elements behind the first."""
    batch, tokens, heads = {"batch": (2, 35, 2), "token": (1, 2, 2), "head": (1, 35, 2)}[axis]
    small = cast(make(tokens, 32, 64, "tau16", batch=batch, heads=heads), torch.bfloat16)
    memory = torch.empty(OFFSET + 2**20, dtype=torch.bfloat16)
    inputs, start = {}, 0
    for name, x in small.items():
        stride = [tokens * heads * 64, heads * 64, 64, 1]
        stride[("batch", "token", "head").index(axis)] = OFFSET
        inputs[name] = memory[start:].as_strided(x.shape, stride).copy_(x)
        start += 2**16
    grad_out = torch.randn_like(small["v"])
    kwargs = dict(grid=(1, tokens), scan=("row", "row_reverse"))
    expected = results(small, grad_out, torch.float64, backend="chunked", **kwargs)
    compare(results(inputs, grad_out, backend=backend, **kwargs), expected, torch.bfloat16)


def test_outputs_beyond_32_bits(backend, compare):
    """Catches an offset in 32 bits within a result: this one has 2^31 elements and more."""
    batch, grid = 513, (256, 256)
    inputs = cast(make(grid[0] * grid[1], 8, 64, "tau16", batch=1, heads=1), torch.bfloat16)
    many = {name: x.expand(batch, -1, -1, -1) for name, x in inputs.items()}
    kwargs = dict(grid=grid, scan=("column_reverse",))
    out = gated_linear_attention(**many, backend=backend, **kwargs)
    expected = gated_linear_attention(**{name: x.double() for name, x in inputs.items()}, backend="chunked", **kwargs)
    compare({"first": out[:1], "last": out[-1:]}, {"first": expected, "last": expected}, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_repeats_are_equal_bits(shape, dtype, backend):
    """Catches races and atomics."""
    batch, rows, cols = shape
    inputs = cast(make(rows * cols, 32, 64, batch=batch, heads=3), dtype)
    grad_out = torch.randn_like(inputs["v"])
    kwargs = dict(grid=(rows, cols), scan=ALL_ORDERS, backend=backend)
    first, *others = (results(inputs, grad_out, **kwargs) for _ in range(2 if backend == "cpu" else 10))
    for other in others:
        assert all(torch.equal(other[name], x) for name, x in first.items())


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_compiles_as_one_graph(backward, backend):
    """Catches a graph break, and a fake that disagrees with the kernel."""
    inputs = make(63, 16, 32)
    leaves = {name: x.requires_grad_(backward) for name, x in inputs.items()}

    def call(**tensors):
        return gated_linear_attention(**tensors, grid=(7, 9), scan=("row", "column_reverse"), backend=backend) * 2

    out, expected = torch.compile(call, fullgraph=True)(**leaves), call(**leaves)
    assert relative_rms(out, expected) <= FLOAT32
    if backward:
        gradients = (torch.autograd.grad(x.square().sum(), list(leaves.values())) for x in (out, expected))
        assert all(relative_rms(x, y) <= FLOAT32 for x, y in zip(*gradients))


def test_strided_inputs_on_another_stream(backend, compare):
    """Catches inputs taken for contiguous, and launches on a stream that does not wait for them."""
    inputs = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in make(196, 32, 64).items()}
    grad_out = torch.ones(()).expand(inputs["v"].shape)
    kwargs = dict(grid=(14, 14), scan=("row", "row_reverse"))
    expected = results(inputs, grad_out, torch.float64, backend="chunked", **kwargs)
    with torch.cuda.stream(stream := torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.default_stream())
        torch.cuda._sleep(20_000_000)  # the kernels must wait for it: what reads earlier reads what is not there yet
        late = {name: x + 0 for name, x in inputs.items()}
        actual = results(late, grad_out, backend=backend, **kwargs)
    torch.cuda.synchronize()
    compare(actual, expected, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=name_of)
@pytest.mark.parametrize(
    ("scan", "decay_scale"),
    [(("row",), 1.0), (("row", "row_reverse"), 0.25), (ALL_ORDERS, 4.0)],
    ids=["row", "rows", "cross"],
)
def test_fused_mixer(scan, decay_scale, shape, dtype, backend, compare):
    """Catches the fused kernels against the same operator in float64, which runs unfused."""
    batch, rows, cols = shape
    heads, channels = 3, 192
    leaves = [torch.randn(batch, rows * cols, 3 * channels).to(dtype), 0.3 * torch.randn(channels)]
    leaves = [x.requires_grad_() for x in (*leaves, torch.randn(channels // 2))]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    grad_y = torch.randn(batch, rows * cols, channels).to(dtype)
    sizes = [channels // 2, channels // 2, channels, channels]
    found = []
    for tensors, name in ((leaves, backend), (wide, "chunked")):
        y = mixer(*tensors, heads, rows, cols, ",".join(scan), name, decay_scale)
        projected, *parameters = torch.autograd.grad(y, tensors, grad_y.to(y.dtype))
        parts = dict(zip(("q", "log_decay", "v", "z"), projected.split(sizes, dim=-1)))
        found.append({"y": y, **parts, "gate_bias": parameters[0], "aug_weight": parameters[1]})
    compare(*found, dtype)


@pytest.mark.parametrize("name", sorted(MIXERS))
def test_every_mixer(name, device, compare):
    """Catches a mixer that computes on another device than its tokens, and kernels that refuse its heads."""
    single, exact = build_mixer(name, 64, 2), build_mixer(name, 64, 2, dtype=torch.float64)
    exact.load_state_dict(single.state_dict())
    x = torch.randn(2, 63, 64)
    found = {}
    for which, some in (("expected", exact), ("actual", single)):
        out = some(x.to(some.in_proj.weight.dtype), (7, 9))
        gradients = torch.autograd.grad(out.square().sum(), list(some.parameters()))
        found[which] = {"out": out, **{key: g for (key, _), g in zip(some.named_parameters(), gradients)}}
    compare({"out": found["actual"]["out"]}, {"out": found["expected"]["out"]}, torch.float32)
    largest = max(g.norm() for g in found["expected"].values())
    for key, g in found["expected"].items():
        assert (found["actual"][key] - g).norm() <= FLOAT32 * largest, key
