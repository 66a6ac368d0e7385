"""A convolution in the gate of a SwiGLU: the C kernel against its formula in float64."""

import re

import pytest
import torch
from fused_inputs import GRIDS, conv_swiglu_formula, double, errors, name_of, permuted, run
from tolerances import FLOAT32, FLOAT64, HALF, relative_rms

from metala_vision.kernels import add_swiglu_mlp, available_backends, conv_silu, conv_swiglu, cpu_blocks

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
        (dict(x=(1, 6, 17)), "x: got shape (1, 6, 17), expected an even number of channels, gate and value"),
        (dict(x=(6, 16)), "x: got shape (6, 16), expected [B, N, C]"),
        (dict(weight=(16, 1, 3, 3)), "weight: got shape (16, 1, 3, 3), expected (8, 1, 3, 3)"),
    ],
    ids=["grid", "odd", "x-2d", "more-filters"],
)
def test_bad_input(arguments, message):
    """Catches sizes that the C code would believe: a weight of fewer channels is read beyond its end."""
    given = dict(x=(1, 6, 16), weight=(8, 1, 3, 3), rows=2, cols=3) | arguments
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        conv_swiglu(**{name: torch.zeros(x) if isinstance(x, tuple) else x for name, x in given.items()})


# --- the second half of a block


def block_inputs(grid: tuple[int, int], batch: int = 2, width: int = 12, hidden: int = 20) -> dict[str, torch.Tensor]:
    return {
        "x": torch.randn(batch, grid[0] * grid[1], width) * 3 + 1,
        "norm_weight": torch.randn(width),
        "norm_bias": torch.randn(width),
        "weight_in": torch.randn(2 * hidden, width),
        "weight_out": torch.randn(width, hidden),
        "conv_weight": torch.randn(hidden, 1, 3, 3),
    }


def block_formula(leaves: dict[str, torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
    x = leaves["x"]
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    inner = (normed * leaves["norm_weight"] + leaves["norm_bias"]) @ leaves["weight_in"].t()
    return x + conv_swiglu_formula(inner, leaves["conv_weight"], *grid) @ leaves["weight_out"].t()


def block(leaves: dict[str, torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
    return add_swiglu_mlp(**leaves, eps=1e-6, rows=grid[0], cols=grid[1])


@pytest.mark.parametrize("tile", [4, 20, 27, 200, 1000])
@pytest.mark.parametrize("grid", [(1, 1), (1, 40), (40, 1), (7, 9), (13, 3), (20, 9)], ids=name_of)
def test_block_equals_the_formula(monkeypatch, grid, tile):
    """Catches a row lost or seen by nobody at the border of two bands, and images that see each other."""
    monkeypatch.setattr(cpu_blocks, "MLP_TILE", tile)
    inputs = block_inputs(grid, batch=3)
    assert relative_rms(block(inputs, grid), block_formula(double(inputs), grid)) <= FLOAT32


def test_a_large_image_goes_in_bands(monkeypatch):
    """Catches a whole image projected at once, which at 16384 tokens leaves the cache and takes fresh memory."""
    monkeypatch.setattr(cpu_blocks, "MLP_TILE", 27)
    seen, linear = [], cpu_blocks.linear
    monkeypatch.setattr(cpu_blocks, "linear", lambda x, *rest: (seen.append(x.shape[0]), linear(x, *rest))[1])
    block(block_inputs((20, 9), batch=1), (20, 9))
    assert seen == [27, 27, 27, 27, 27, 27, 18, 180]


def test_block_gradients():
    """Catches a training that is not what inference computes."""
    inputs, grid = block_inputs((7, 9)), (7, 9)
    grad_out = torch.randn_like(inputs["x"])
    expected = run(lambda leaves: block_formula(leaves, grid), double(inputs), grad_out)
    found = errors(run(lambda leaves: block(leaves, grid), inputs, grad_out), expected)
    assert max(found.values()) <= FLOAT32, found


@pytest.mark.parametrize("way", ["autocast", "model"])
def test_block_in_bfloat16(way):
    """Catches an inference in another dtype than the training's, or a residual stream rounded by autocast."""
    inputs, grid = block_inputs((7, 9)), (7, 9)
    if way == "model":
        inputs = {name: x.bfloat16() for name, x in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        expected = block({name: x.clone().requires_grad_() for name, x in inputs.items()}, grid)
        out = block(inputs, grid)
        strided = block(inputs | {"x": permuted(inputs["x"])}, grid)
    assert out.dtype == expected.dtype == inputs["x"].dtype
    assert relative_rms(out, expected) <= HALF
    assert torch.equal(strided, out)


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    ("shapes", "grid", "message"),
    [
        (dict(), (7, 8), "grid: got (7, 8), expected (rows, cols) with rows * cols == 63 tokens"),
        (dict(), (0, 0), "grid: got (0, 0), expected"),
        (dict(conv_weight=(40, 1, 3, 3)), (7, 9), "conv_weight: got shape (40, 1, 3, 3), expected (20, 1, 3, 3)"),
        (dict(x=(63, 12)), (7, 9), "x: got shape (63, 12), expected [B, N, C]"),
    ],
    ids=["grid", "no-grid", "pairs", "x-2d"],
)
def test_bad_input_of_the_block(shapes, grid, message, gradients):
    """Catches a shape that C code would read beyond."""
    inputs = block_inputs((7, 9)) | {name: torch.randn(shape) for name, shape in shapes.items()}
    inputs["x"].requires_grad_(gradients)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        block(inputs, grid)
