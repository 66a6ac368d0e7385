"""The SwiGLU MLP in tiles of tokens, with its norm and residual too, against formulas in float64."""

import re

import pytest
import torch
from fused_inputs import double, errors, run, swiglu_formula
from tolerances import FLOAT32, FLOAT64, HALF, relative_rms
from torch import Tensor, nn

from metala_vision.kernels import add_swiglu_mlp, available_backends, cpu_blocks, swiglu, swiglu_mlp

pytestmark = pytest.mark.skipif("cpu" not in available_backends(), reason="the C kernels do not run here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("tokens", "tile", "tiles", "ragged"),
    [(37, 8, 5, True), (13, 8, 2, True), (16, 8, 2, False), (8, 100, 1, False), (1, 8, 1, False), (3, 1, 3, False)],
    ids=["five", "two", "even", "one-tile", "one-token", "single-tokens"],
)
@pytest.mark.parametrize("band", [1, 2, 9], ids="{}-tiles-at-once".format)
def test_mlp_in_tiles(monkeypatch, band, tokens, tile, tiles, ragged, dtype):
    """Catches tokens lost or taken twice at the border of a tile or band, above all in a last one that is not full."""
    hidden = 40
    monkeypatch.setattr(cpu_blocks, "MLP_TILE", tile)
    monkeypatch.setattr(cpu_blocks, "BAND_BYTES", band * cpu_blocks.mlp_tile(tokens) * hidden // 2 * dtype.itemsize)
    seen, linear = [], cpu_blocks.linear
    monkeypatch.setattr(
        cpu_blocks, "linear", lambda x, w, *rest: (seen.append((x.shape[0], len(w))), linear(x, w, *rest))[1]
    )
    x = torch.randn(tokens, 12).to(dtype)
    weight_in, weight_out = (torch.randn(shape).to(dtype) for shape in [(hidden, 12), (10, hidden // 2)])
    out = swiglu_mlp(x, weight_in, weight_out)
    sizes, bands = ([size for size, width in seen if width == out_width] for out_width in (hidden, 10))
    assert (len(sizes), sum(sizes)) == (tiles, tokens)
    assert (len(bands), sum(bands)) == (-(-tiles // band), tokens)
    assert (sizes[-1] < sizes[0]) == ragged
    inner = x.double() @ weight_in.double().t()
    if dtype == torch.float32:
        assert relative_rms(out, swiglu_formula(inner) @ weight_out.double().t()) <= FLOAT32
    else:  # the composed form rounds between the products too
        assert relative_rms(out, nn.functional.linear(swiglu(nn.functional.linear(x, weight_in)), weight_out)) <= HALF
    assert out.dtype == dtype


@pytest.mark.parametrize("shape", [(2, 37, 12), (12,), (2, 3, 5, 12), (0, 37, 12)], ids=str)
def test_mlp_with_and_without_gradients(shape):
    """Catches an inference that is not the training's forward pass, in shape or in numbers."""
    x, weights = torch.randn(shape), (torch.randn(40, 12), torch.randn(10, 20))
    expected = swiglu_mlp(x, *(w.clone().requires_grad_() for w in weights))
    assert expected.requires_grad
    out = swiglu_mlp(x, *weights)
    assert not out.requires_grad
    assert relative_rms(out, expected) <= FLOAT32
    strided = torch.randn(*shape[:-1], 13)[..., 1:].copy_(x)
    assert torch.equal(swiglu_mlp(strided, *weights), out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["float16", "float64"])
def test_mlp_in_other_dtypes(dtype):
    """Catches bytes of a dtype that the C code does not know, read as float32."""
    x, weights = torch.randn(37, 12).to(dtype), (torch.randn(40, 12).to(dtype), torch.randn(10, 20).to(dtype))
    expected = swiglu_mlp(x, *(w.clone().requires_grad_() for w in weights))
    out = swiglu_mlp(x, *weights)
    assert (out.dtype, expected.dtype) == (dtype, dtype)
    assert relative_rms(out, expected) <= (HALF if dtype == torch.float16 else FLOAT64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_mlp_under_autocast(dtype):
    """Catches an inference that leaves autocast out, or comes back in another dtype than training."""
    x, weights = torch.randn(37, 12), (torch.randn(40, 12), torch.randn(10, 20))
    with torch.autocast("cpu", dtype):
        expected = swiglu_mlp(x, *(w.clone().requires_grad_() for w in weights))
        out = swiglu_mlp(x, *weights)
    assert (out.dtype, expected.dtype) == (dtype, dtype)
    assert relative_rms(out, expected) <= HALF


def test_mlp_gradients():
    """Catches a path that forgets the gradient of one of the two weights."""
    inputs = {"x": torch.randn(37, 12), "weight_in": torch.randn(40, 12), "weight_out": torch.randn(10, 20)}
    grad_out = torch.randn(37, 10)

    def formula(leaves):
        return swiglu_formula(leaves["x"] @ leaves["weight_in"].t()) @ leaves["weight_out"].t()

    expected = run(formula, double(inputs), grad_out)
    found = errors(run(lambda leaves: swiglu_mlp(**leaves), inputs, grad_out), expected)
    assert max(found.values()) <= FLOAT32, found


# --- the MLP with its norm and its residual


def block_inputs(*shape: int, width: int = 12, hidden: int = 20) -> dict[str, Tensor]:
    return {
        "x": torch.randn(*shape, width) * 3 + 1,
        "norm_weight": torch.randn(width),
        "norm_bias": torch.randn(width),
        "weight_in": torch.randn(2 * hidden, width),
        "weight_out": torch.randn(width, hidden),
    }


def block_formula(leaves: dict[str, Tensor]) -> Tensor:
    x = leaves["x"]
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    normed = normed * leaves["norm_weight"] + leaves["norm_bias"]
    return x + swiglu_formula(normed @ leaves["weight_in"].t()) @ leaves["weight_out"].t()


@pytest.mark.parametrize("tile", [8, 1000])
@pytest.mark.parametrize("shape", [(2, 37), (1,), (16,)], ids=str)
def test_block_equals_the_formula(monkeypatch, shape, tile):
    """Catches a residual that is lost or added twice, the statistics of another token, and a wrong gradient."""
    monkeypatch.setattr(cpu_blocks, "MLP_TILE", tile)
    inputs = block_inputs(*shape)
    expected = run(block_formula, double(inputs), torch.randn_like(inputs["x"]))
    out = add_swiglu_mlp(**inputs, eps=1e-6)
    assert relative_rms(out, expected["out"]) <= FLOAT32


def test_block_gradients():
    """Catches a gradient that stops at the norm or passes the residual by."""
    inputs = block_inputs(2, 37)
    grad_out = torch.randn_like(inputs["x"])
    expected = run(block_formula, double(inputs), grad_out)
    found = errors(run(lambda leaves: add_swiglu_mlp(**leaves, eps=1e-6), inputs, grad_out), expected)
    assert max(found.values()) <= FLOAT32, found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("way", ["autocast", "model"])
def test_block_in_other_dtypes(way, dtype):
    """Catches an inference in another dtype than the training's, or a residual stream rounded by autocast."""
    if way == "autocast" and dtype == torch.float64:
        pytest.skip("autocast knows no float64")
    inputs = block_inputs(2, 37)
    if way == "model":
        inputs = {name: x.to(dtype) for name, x in inputs.items()}
    with torch.autocast("cpu", dtype, enabled=way == "autocast"):
        expected = add_swiglu_mlp(**{name: x.clone().requires_grad_() for name, x in inputs.items()}, eps=1e-6)
        out = add_swiglu_mlp(**inputs, eps=1e-6)
    assert out.dtype == expected.dtype == inputs["x"].dtype
    assert relative_rms(out, expected) <= (FLOAT64 if dtype == torch.float64 else HALF)


BAD = {
    "hidden": (
        dict(weight_out=(12, 40)),
        "weight_in, weight_out: got shapes (40, 12), (12, 40) for x (2, 37, 12), expected",
    ),
    "odd": (
        dict(weight_in=(41, 12)),
        "weight_in, weight_out: got shapes (41, 12), (12, 20) for x (2, 37, 12), expected",
    ),
    "channels": (dict(weight_in=(40, 11)), "weight_in, weight_out: got shapes (40, 11), (12, 20) for x (2, 37, 12)"),
    "axes": (dict(weight_in=(40,)), "weight_in, weight_out: got shapes (40,), (12, 20) for x (2, 37, 12), expected"),
    "residual": (dict(weight_out=(10, 20)), "weight_out: got shape (10, 20), expected (12, D) to be added to x"),
    "norm": (dict(norm_weight=(3,)), "norm_weight, norm_bias: got shapes (3,), (12,), expected (12,) twice"),
}


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", BAD)
def test_bad_shapes(name, gradients):
    """Catches a shape that C code would read beyond."""
    shapes, message = BAD[name]
    inputs = block_inputs(2, 37) | {x: torch.randn(shape) for x, shape in shapes.items()}
    inputs["x"].requires_grad_(gradients)
    with pytest.raises(ValueError, match=re.escape(message)):
        add_swiglu_mlp(**inputs, eps=1e-6)
    if name not in ("residual", "norm"):
        with pytest.raises(ValueError, match=re.escape(message)):
            swiglu_mlp(inputs["x"], inputs["weight_in"], inputs["weight_out"])


@pytest.mark.parametrize("name", list(block_inputs(1))[1:])
def test_tensors_of_another_device(name):
    """Catches one tensor without data beside others, that decides which kernel runs."""
    inputs = block_inputs(2, 37)
    with pytest.raises(ValueError, match=f"^{name}: got device meta, expected cpu"):
        add_swiglu_mlp(**{**inputs, name: inputs[name].to("meta")}, eps=1e-6)
