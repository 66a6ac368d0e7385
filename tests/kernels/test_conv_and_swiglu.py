"""The element-wise operators in C against their formulas in float64."""

import re

import pytest
import torch
from fused_inputs import GRIDS, conv_formula, conv_inputs, double, errors, name_of, permuted, run, swiglu_formula
from tolerances import FLOAT32, FLOAT64, HALF, relative_rms
from torch import Tensor

from metala_vision.kernels import available_backends, conv_silu, swiglu

pytestmark = pytest.mark.skipif("cpu" not in available_backends(), reason="the C kernels do not run here")


@pytest.mark.parametrize("channels", [1, 5, 16, 20, 33, 48, 192])
@pytest.mark.parametrize("grid", [*GRIDS, (7, 1), (2, 2)], ids=name_of)
def test_conv_silu_equals_the_formula(grid, channels):
    """Catches a tap at the wrong place, an edge that is no zero, and lanes beyond the last channel."""
    inputs = conv_inputs(grid, channels)
    grad_out = torch.randn_like(inputs["x"])
    expected = run(lambda leaves: conv_formula(**leaves, rows=grid[0], cols=grid[1]), double(inputs), grad_out)
    found = errors(run(lambda leaves: conv_silu(**leaves, rows=grid[0], cols=grid[1]), inputs, grad_out), expected)
    assert max(found.values()) <= FLOAT32, found


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
    ids=["bfloat16", "bfloat16-float32", "float32-bfloat16"],
)
@pytest.mark.parametrize(("grid", "channels"), [((7, 9), 20), ((15, 17), 33)], ids=["7x9", "15x17"])
def test_conv_silu_in_other_dtypes(grid, channels, dtype, weight_dtype):
    """Catches sums in bfloat16, and a gradient in another dtype than its input."""
    inputs = conv_inputs(grid, channels)
    inputs = {"x": inputs["x"].to(dtype), "weight": inputs["weight"].to(weight_dtype)}
    grad_out = torch.randn_like(inputs["x"])
    expected = run(lambda leaves: conv_formula(**leaves, rows=grid[0], cols=grid[1]), double(inputs), grad_out)
    actual = run(lambda leaves: conv_silu(**leaves, rows=grid[0], cols=grid[1]), inputs, grad_out)
    assert {name: x.dtype for name, x in actual.items()} == {"out": dtype, "x": dtype, "weight": weight_dtype}
    for name, error in errors(actual, expected).items():
        assert error <= (FLOAT32 if actual[name].dtype == torch.float32 else HALF), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_conv_silu_under_autocast(dtype):
    """Catches a convolution that autocast does not reach, or whose float32 parameters get a rounded gradient."""
    inputs = conv_inputs((7, 9), 20)
    grad_out = torch.randn_like(inputs["x"]).to(dtype)
    expected = run(lambda leaves: conv_formula(**leaves, rows=7, cols=9), double(inputs), grad_out)

    def fused(leaves):
        with torch.autocast("cpu", dtype):
            return conv_silu(**leaves, rows=7, cols=9)

    actual = run(fused, inputs, grad_out)
    assert {name: x.dtype for name, x in actual.items()} == dict(out=dtype, x=torch.float32, weight=torch.float32)
    if dtype == torch.bfloat16:  # in C, where the output alone is rounded; float16 is torch's own convolution
        tolerances = dict(out=HALF, x=FLOAT32, weight=FLOAT32)
        assert all(error <= tolerances[name] for name, error in errors(actual, expected).items())
        assert torch.equal(actual["out"], conv_silu(**inputs, rows=7, cols=9).to(dtype))


def test_conv_silu_of_half_inputs_under_autocast():
    """Catches bfloat16 tokens that autocast turns into something else."""
    inputs = conv_inputs((7, 9), 20, torch.bfloat16)
    expected = conv_silu(**inputs, rows=7, cols=9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv_silu(**inputs, rows=7, cols=9), expected)


def test_conv_silu_nan_reaches_its_neighbours_alone():
    """Catches a window that does not slide, or wraps around the edge of the image."""
    inputs = conv_inputs((5, 6), 20)
    clean = conv_silu(**inputs, rows=5, cols=6)
    inputs["x"][:, 2 * 6 + 5] = float("nan")  # the end of the third row
    out = conv_silu(**inputs, rows=5, cols=6).unflatten(1, (5, 6))
    seen = torch.zeros(5, 6, dtype=torch.bool)
    seen[1:4, 4:6] = True
    assert out[:, seen].isnan().all()
    assert torch.equal(out[:, ~seen], clean.unflatten(1, (5, 6))[:, ~seen])


BAD_CONV = {
    "grid": (dict(rows=2, cols=4), "grid: got (2, 4), expected (rows, cols) with rows * cols == 6 tokens"),
    "grid-negative": (dict(rows=-2, cols=-3), "grid: got (-2, -3), expected"),
    "x-2d": (dict(x=(6, 8)), "x: got shape (6, 8), expected"),
    "x-4d": (dict(x=(1, 6, 1, 8)), "x: got shape (1, 6, 1, 8), expected"),
    "fewer-filters": (dict(weight=(4, 1, 3, 3)), "weight: got shape (4, 1, 3, 3), expected"),
    "more-filters": (dict(weight=(16, 1, 3, 3)), "weight: got shape (16, 1, 3, 3), expected"),
    "full-filters": (dict(weight=(8, 8, 3, 3)), "weight: got shape (8, 8, 3, 3), expected"),
    "size": (dict(weight=(8, 1, 5, 5)), "weight: got shape (8, 1, 5, 5), expected"),
    "one-dimension": (dict(weight=(8, 1, 9)), "weight: got shape (8, 1, 9), expected"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_CONV.values(), ids=BAD_CONV)
def test_bad_input_of_conv_silu(arguments, message):
    """Catches sizes that the C code would believe: a weight of fewer channels is read beyond its end."""
    good = dict(x=(1, 6, 8), weight=(8, 1, 3, 3), rows=2, cols=3)

    def apply(arguments):
        return conv_silu(**{name: torch.zeros(x) if isinstance(x, tuple) else x for name, x in arguments.items()})

    apply(good)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        apply(good | arguments)


def test_conv_silu_with_a_weight_elsewhere():
    """Catches an address of another device given to the C code."""
    with pytest.raises(ValueError, match="^weight: got device meta, expected cpu"):
        conv_silu(torch.zeros(1, 6, 8), torch.zeros(8, 1, 3, 3, device="meta"), 2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2,), (7, 10), (2, 3, 66), (2, 63, 48), (1, 1, 1, 128)], ids=str)
def test_swiglu_equals_the_formula(shape, dtype):
    """Catches gate and value swapped, an exponential out of range, and lanes beyond the last channel."""
    inputs = {"x": (torch.randn(shape) * torch.tensor([1.0, 60.0])[torch.randint(2, shape)]).to(dtype)}
    grad_out = torch.randn(*shape[:-1], shape[-1] // 2).to(dtype)
    expected = run(lambda leaves: swiglu_formula(leaves["x"]), double(inputs), grad_out)
    actual = run(lambda leaves: swiglu(leaves["x"]), inputs, grad_out)
    assert {x.dtype for x in actual.values()} == {dtype}
    found = errors(actual, expected)
    assert max(found.values()) <= (FLOAT32 if dtype == torch.float32 else HALF), found


def test_swiglu_nan_stays_with_its_channel():
    """Catches a NaN that spreads over a vector, or that an exponential's clamp swallows."""
    x = torch.randn(5, 40)
    clean = swiglu(x)
    for at in (3, 23):  # a gate and the value beside it
        poisoned = x.clone()
        poisoned[2, at] = float("nan")
        out = swiglu(poisoned)
        assert out[2, 3].isnan()
        out[2, 3] = clean[2, 3]
        assert torch.equal(out, clean)


@pytest.mark.parametrize("layout", ["permuted", "slice", "transposed"])
def test_elementwise_of_strided_tensors(layout):
    """Catches strides that are taken for contiguous ones, in inputs or in gradients of the output."""

    def strided(batch: int, tokens: int, channels: int) -> Tensor:
        if layout == "permuted":
            return permuted(torch.randn(batch, tokens, channels))
        if layout == "slice":
            return torch.randn(batch, tokens, channels + 3)[..., 2:-1]
        return torch.randn(channels, tokens, batch).permute(2, 1, 0)

    weight = torch.randn(3, 3, 1, 24).permute(3, 2, 0, 1)
    x, dy, half_dy = strided(2, 63, 24), strided(2, 63, 24), strided(2, 63, 12)
    for apply, inputs, dout in [
        (lambda leaves: conv_silu(**leaves, rows=7, cols=9), dict(x=x, weight=weight), dy),
        (lambda leaves: swiglu(leaves["x"]), dict(x=x), half_dy),
    ]:
        assert not dout.is_contiguous()
        expected = run(apply, {name: t.contiguous() for name, t in inputs.items()}, dout.contiguous())
        leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
        assert not leaves["x"].is_contiguous()
        out = apply(leaves)
        actual = [out, *torch.autograd.grad(out, list(leaves.values()), dout)]
        assert all(torch.equal(a, b) for a, b in zip(actual, expected.values()))


def test_elementwise_gradients_of_a_sum():
    """Catches a zero-stride gradient of the output read as if its elements lay side by side."""
    inputs = conv_inputs((7, 9), 20)
    for function, formula, given in [
        (lambda x, weight: conv_silu(x, weight, 7, 9), lambda x, weight: conv_formula(x, weight, 7, 9), inputs),
        (swiglu, swiglu_formula, {"x": inputs["x"]}),
    ]:
        leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
        function(**leaves).sum().backward()
        expected = run(lambda leaves, formula=formula: formula(**leaves), double(given))
        del expected["out"]
        found = errors({name: x.grad for name, x in leaves.items()}, expected)
        assert max(found.values()) <= FLOAT32, found


def test_elementwise_gradcheck():
    """Catches a derivative cut inside the composed forms, which run in float64."""
    inputs = [x.requires_grad_() for x in double(conv_inputs((2, 3), 4)).values()]
    assert torch.autograd.gradcheck(lambda x, weight: conv_silu(x, weight, 2, 3), inputs)
    assert torch.autograd.gradcheck(swiglu, inputs[:1])
    assert relative_rms(conv_silu(*inputs, 2, 3), conv_formula(*inputs, 2, 3)) <= FLOAT64
    assert relative_rms(swiglu(inputs[0]), swiglu_formula(inputs[0])) <= FLOAT64


@pytest.mark.parametrize("width", [1, 7])
def test_swiglu_of_an_odd_width(width):
    """Catches a result for channels that do not come in pairs of gate and value."""
    with pytest.raises(ValueError, match=rf"^x: got shape \(3, {width}\), expected"):
        swiglu(torch.randn(3, width))
