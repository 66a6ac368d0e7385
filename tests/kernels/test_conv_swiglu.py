"""A convolution in the gate of a SwiGLU: the C kernel against its formula in float64."""

import re

import pytest
import torch
from fused_inputs import GRIDS, conv_swiglu_formula, double, errors, name_of, run
from tolerances import FLOAT32, FLOAT64, HALF, relative_rms

from metala_vision.kernels import available_backends, conv_silu, conv_swiglu

pytestmark = pytest.mark.skipif("cpu" not in available_backends(), reason="the C kernels do not run here")


def make(grid: tuple[int, int], width: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Gate and value side by side, and some gates where SiLU is flat or an exponential would overflow."""
    x = torch.randn(2, grid[0] * grid[1], 2 * width)
    x[..., ::7] *= 40
    return {"x": x.to(dtype), "weight": torch.randn(width, 1, 3, 3).to(dtype)}


@pytest.mark.parametrize("width", [1, 5, 16, 33, 48])
@pytest.mark.parametrize("grid", [*GRIDS, (7, 1), (2, 2)], ids=name_of)
def test_equals_the_formula(grid, width):
    """Catches a value of another token, a wrong stride, and lanes that reach from the gate into the value."""
    inputs = make(grid, width)
    grad_out = torch.randn(2, grid[0] * grid[1], width)
    expected = run(lambda leaves: conv_swiglu_formula(**leaves, rows=grid[0], cols=grid[1]), double(inputs), grad_out)
    found = errors(run(lambda leaves: conv_swiglu(**leaves, rows=grid[0], cols=grid[1]), inputs, grad_out), expected)
    assert max(found.values()) <= FLOAT32, found


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
    ids=["bfloat16", "bfloat16-float32", "float32-bfloat16"],
)
@pytest.mark.parametrize("width", [20, 32])
def test_other_dtypes(dtype, weight_dtype, width):
    """Catches sums in bfloat16, and a gradient in another dtype than its input."""
    inputs = make((7, 9), width)
    inputs = {"x": inputs["x"].to(dtype), "weight": inputs["weight"].to(weight_dtype)}
    grad_out = torch.randn(2, 63, width).to(dtype)
    expected = run(lambda leaves: conv_swiglu_formula(**leaves, rows=7, cols=9), double(inputs), grad_out)
    actual = run(lambda leaves: conv_swiglu(**leaves, rows=7, cols=9), inputs, grad_out)
    assert {name: x.dtype for name, x in actual.items()} == {"out": dtype, "x": dtype, "weight": weight_dtype}
    for name, error in errors(actual, expected).items():
        assert error <= (FLOAT32 if actual[name].dtype == torch.float32 else HALF), name


def test_autocast_leaves_it_the_dtype_of_its_input():
    """Catches a composed form that autocast turns into another dtype than that of the kernel."""
    inputs = make((7, 9), 20)
    expected = conv_swiglu(**inputs, rows=7, cols=9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv_swiglu(**inputs, rows=7, cols=9), expected)
        assert conv_swiglu(**double(inputs), rows=7, cols=9).dtype == torch.float64


def test_a_nan_of_the_gate_reaches_its_neighbours_and_one_of_the_value_itself():
    inputs = make((5, 6), 20)
    clean = conv_swiglu(**inputs, rows=5, cols=6)
    inputs["x"][:, 2 * 6 + 5, 3] = float("nan")  # a gate at the end of the third row
    inputs["x"][:, 7, 20 + 4] = float("nan")  # a value
    out = conv_swiglu(**inputs, rows=5, cols=6)
    seen = torch.zeros(5, 6, 20, dtype=torch.bool)
    seen[1:4, 4:6, 3] = True
    seen[1, 1, 4] = True
    seen = seen.flatten(0, 1)
    assert out[:, seen].isnan().all()
    assert torch.equal(out[:, ~seen], clean[:, ~seen])


def test_it_is_the_convolution_of_the_gate_times_the_value():
    """Catches two kernels of one convolution that differ."""
    inputs = make((7, 9), 33)
    gate, value = inputs["x"].chunk(2, -1)
    assert relative_rms(conv_swiglu(**inputs, rows=7, cols=9), conv_silu(gate, inputs["weight"], 7, 9) * value) == 0


def test_gradcheck():
    """Catches a derivative cut inside the composed form, which runs in float64."""
    inputs = {name: x.requires_grad_() for name, x in double(make((2, 3), 4)).items()}
    inputs["x"] = (inputs["x"].detach() / 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, weight: conv_swiglu(x, weight, 2, 3), tuple(inputs.values()))
    assert relative_rms(conv_swiglu(**inputs, rows=2, cols=3), conv_swiglu_formula(**inputs, rows=2, cols=3)) <= FLOAT64


def test_strided_tensors():
    """Catches strides that are taken for contiguous ones, in inputs or in the gradient of the output."""
    inputs, dout = make((7, 9), 24), torch.randn(24, 63, 2).permute(2, 1, 0)
    expected = run(lambda leaves: conv_swiglu(**leaves, rows=7, cols=9), inputs, dout.contiguous())
    strided = {"x": inputs["x"].permute(2, 1, 0).contiguous().permute(2, 1, 0), "weight": inputs["weight"]}
    actual = run(lambda leaves: conv_swiglu(**leaves, rows=7, cols=9), strided, dout)
    assert all(torch.equal(actual[name], x) for name, x in expected.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(rows=2, cols=4), "grid: got (2, 4), expected (rows, cols) with rows * cols == 6 tokens"),
        (dict(x=(1, 6, 17)), "x: got shape (1, 6, 17), expected [B, N, 2 D]"),
        (dict(x=(6, 16)), "x: got shape (6, 16), expected [B, N, 2 D]"),
        (dict(weight=(16, 1, 3, 3)), "weight: got shape (16, 1, 3, 3), expected (8, 1, 3, 3)"),
    ],
    ids=["grid", "odd", "x-2d", "more-filters"],
)
def test_bad_input(arguments, message):
    """Catches sizes that the C code would believe: a weight of fewer channels is read beyond its end."""
    given = dict(x=(1, 6, 16), weight=(8, 1, 3, 3), rows=2, cols=3) | arguments
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        conv_swiglu(**{name: torch.zeros(x) if isinstance(x, tuple) else x for name, x in given.items()})
