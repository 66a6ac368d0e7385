"""The first half of a block in one operator, with its norm and residual, against formulas in float64."""

import re

import pytest
import torch
from fused_inputs import ALL, conv_formula, double, errors, mixer_formula, run
from tolerances import FLOAT32, FLOAT64, relative_rms
from torch import Tensor, nn

from metala_vision.kernels import add_mixer, available_backends, cpu_blocks

pytestmark = pytest.mark.skipif("cpu" not in available_backends(), reason="the C kernels do not run here")

GRID = (7, 9)
HEADS = 3
DIM = 48
PROBLEM = (HEADS, *GRID, ALL)


def half_block(dim: int = DIM) -> dict[str, Tensor]:
    return {
        "x": torch.randn(2, GRID[0] * GRID[1], dim) * 3 + 1,
        "norm_weight": torch.randn(dim),
        "norm_bias": torch.randn(dim),
        "conv_weight": torch.randn(dim, 1, 3, 3),
        "weight_in": torch.randn(3 * dim, dim) * dim**-0.5,
        "gate_bias": torch.randn(dim),
        "aug_weight": torch.randn(dim // 2),
        "weight_out": torch.randn(dim, dim),
        "bias_in": torch.randn(3 * dim),
    }


def fused(leaves: dict[str, Tensor], scan: str = ALL, decay_scale: float = 1.0) -> Tensor:
    norm = leaves["norm_weight"], leaves["norm_bias"], 1e-6
    weights = (leaves[name] for name in ("conv_weight", "weight_in", "gate_bias", "aug_weight", "weight_out"))
    return add_mixer(leaves["x"], *norm, *weights, HEADS, *GRID, scan, decay_scale, leaves.get("bias_in"))


def formula(leaves: dict[str, Tensor], scan: str = ALL, decay_scale: float = 1.0) -> Tensor:
    x, dim = leaves["x"], leaves["x"].shape[2]
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    normed = normed * leaves["norm_weight"] + leaves["norm_bias"]
    projected = conv_formula(normed, leaves["conv_weight"], *GRID) @ leaves["weight_in"].t()
    projected = projected + leaves.get("bias_in", 0)
    parts = dict(zip(("q", "logits", "v", "z"), projected.split([dim // 2, dim // 2, dim, dim], -1)))
    return x + mixer_formula({**leaves, **parts}, HEADS, GRID, scan, decay_scale) @ leaves["weight_out"].t()


@pytest.mark.parametrize("onednn", [True, False], ids=["onednn", "torch"])
@pytest.mark.parametrize("scan", ["row", "column_reverse,column", ALL])
def test_equals_the_formula(monkeypatch, scan, onednn):
    """Catches a residual that is lost or added twice, and weights that change places."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", onednn)
    inputs = half_block()
    assert relative_rms(fused(inputs, scan), formula(double(inputs), scan)) <= FLOAT32


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_without_a_bias(monkeypatch, kept, recorded):
    """Catches a bias that is not optional, and one lost or added twice where the product is written to kept memory."""
    monkeypatch.setattr(cpu_blocks, "MAPPED_BYTES", 0 if kept else 1 << 60)
    inputs = {name: x.requires_grad_(recorded) for name, x in half_block().items()}
    biased = fused(inputs)
    assert relative_rms(biased, formula(double(inputs))) <= FLOAT32
    del inputs["bias_in"]
    expected = formula(double(inputs))
    assert relative_rms(fused(inputs), expected) <= FLOAT32
    assert relative_rms(biased, expected) > 100 * FLOAT32


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("decay_scale", [0.25, 4.0])
def test_decay_scale(decay_scale, recorded):
    """Catches a scale that is lost in one of the two ways that a half block runs."""
    inputs = {name: x.requires_grad_(recorded) for name, x in half_block().items()}
    expected = formula(double(inputs), ALL, decay_scale)
    assert relative_rms(fused(inputs, ALL, decay_scale), expected) <= FLOAT32
    assert relative_rms(fused(inputs, ALL), expected) > 100 * FLOAT32


def test_gradients():
    """Catches a gradient that stops on its way, or an input that needs one and is not asked."""
    inputs = half_block()
    grad_out = torch.randn_like(inputs["x"])
    expected = run(formula, double(inputs), grad_out)
    found = errors(run(fused, inputs, grad_out), expected)
    assert max(found.values()) <= FLOAT32, found
    for name in inputs:
        leaves = {other: x.clone().requires_grad_(other == name) for other, x in inputs.items()}
        assert fused(leaves).requires_grad, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("way", ["autocast", "model"])
def test_other_dtypes(way, dtype):
    """Catches an inference in another dtype than the training's, or a residual stream rounded by autocast.

    Between its products training rounds more often, so that the fused operator has to be no further from the formula.
    """
    if way == "autocast" and dtype == torch.float64:
        pytest.skip("autocast knows no float64")
    inputs = half_block()
    if way == "model":
        inputs = {name: x.to(dtype) for name, x in inputs.items()}
    with torch.autocast("cpu", dtype, enabled=way == "autocast"):
        expected = fused({name: x.clone().requires_grad_() for name, x in inputs.items()})
        out = fused(inputs)
    assert out.dtype == expected.dtype == inputs["x"].dtype
    exact = formula(double(inputs))
    assert relative_rms(out, exact) <= max(FLOAT64, relative_rms(expected, exact))


@pytest.mark.parametrize("layout", ["permuted", "slice"])
def test_strided_tokens(layout):
    """Catches strides of the tokens taken for dense ones."""
    inputs = half_block()
    expected = fused(inputs)
    x = inputs["x"]
    inputs["x"] = (
        x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "permuted" else torch.cat([x, x], 2)[..., :DIM]
    )
    assert not inputs["x"].is_contiguous()
    assert relative_rms(fused(inputs), expected) <= FLOAT32


@pytest.mark.filterwarnings("ignore:.isinstance.treespec")  # torch.export itself, in torch 2.11
def test_compile_and_export():
    """Catches a graph break, and an exported program that is not the operator."""
    torch.compiler.reset()
    inputs = half_block()

    class Half(nn.Module):
        def forward(self, leaves: dict[str, Tensor]) -> Tensor:
            """[B, N, C] -> [B, N, C]."""
            return fused(leaves)

    with torch.no_grad():
        expected = fused(inputs)
        assert relative_rms(torch.compile(fused, fullgraph=True, backend="aot_eager")(inputs), expected) <= FLOAT32
        program = torch.export.export(Half(), (inputs,))
        assert relative_rms(program.module()(inputs), expected) <= FLOAT32
    targets = [str(node.target) for node in program.run_decompositions().graph.nodes]
    assert "metala.add_mixer_forward.default" in targets


def test_strides_are_those_of_the_fake():
    """Catches a result as permuted as the tokens, which a compiler was told is dense."""
    inputs = half_block()
    inputs["x"] = inputs["x"].movedim(1, -1).contiguous().movedim(-1, 1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert fused(inputs).is_contiguous()


@pytest.mark.parametrize("name", list(half_block())[1:])
def test_tensors_of_another_device(name):
    """Catches one tensor without data beside others, that decides which kernel runs and leaves memory as it was."""
    inputs = half_block()
    with pytest.raises((ValueError, RuntimeError), match="device"):
        fused({**inputs, name: inputs[name].to("meta")})


BAD = {
    "x": ((2, 63), "x: got shape (2, 63), expected [B, N, C]"),
    "conv_weight": ((48, 1, 3), "conv_weight: got shape (48, 1, 3), expected (48, 1, 3, 3)"),
    "weight_in": ((144, 24), "weight_in, weight_out: got shapes (144, 24), (48, 48), expected (144, 48), (48, 48)"),
    "weight_out": ((24, 48), "weight_in, weight_out: got shapes (144, 48), (24, 48), expected"),
    "norm_weight": ((3,), "norm_weight, norm_bias: got shapes (3,), (48,), expected (48,) twice"),
    "norm_bias": ((7, 48), "norm_weight, norm_bias: got shapes (48,), (7, 48), expected (48,) twice"),
    "gate_bias": ((24,), "gate_bias, aug_weight: got shapes (24,), (24,), expected (48,), (24,)"),
    "aug_weight": ((48,), "gate_bias, aug_weight: got shapes (48,), (48,), expected (48,), (24,)"),
    "bias_in": ((24,), "bias_in: got shape (24,), expected (144,)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_shapes(name):
    """Catches a shape that C code would read beyond."""
    shape, message = BAD[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        fused({**half_block(), name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ((5, 7, 9, "row"), "num_heads: got 5 for 48 channels"),
        ((3, 7, 8, "row"), "grid: got (7, 8), expected"),
        ((3, 7, 9, "rows"), "scan: got ('rows',), expected"),
    ],
)
def test_bad_problem(problem, message):
    """Catches a grid that C code would walk out of."""
    inputs = half_block()
    arguments = [inputs[name] for name in list(inputs)[:3]], [inputs[name] for name in list(inputs)[3:-1]]
    with pytest.raises(ValueError, match=re.escape(message)):
        add_mixer(*arguments[0], 1e-6, *arguments[1], *problem)
