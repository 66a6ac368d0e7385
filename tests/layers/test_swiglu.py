"""The channel mixer against its formula, and with other modules than its own."""

import math

import pytest
import torch
from tolerances import FLOAT32, FLOAT64, relative_rms
from torch import Tensor, nn

from metala_vision.layers import MetaLABlock, SwiGLU


def test_equals_the_formula():
    """Catches gate and value swapped, and an activation other than SiLU."""
    layer = SwiGLU(4, 6, dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    w1, w2 = layer.fc1.weight.detach().tolist()[:6], layer.fc1.weight.detach().tolist()[6:]
    w3 = layer.fc2.weight.detach().tolist()
    expected = []
    for token in x.flatten(0, 1).tolist():
        gate = [sum(w * a for w, a in zip(row, token)) for row in w1]
        value = [sum(w * a for w, a in zip(row, token)) for row in w2]
        hidden = [g / (1 + math.exp(-g)) * u for g, u in zip(gate, value)]
        expected.append([sum(w * h for w, h in zip(row, hidden)) for row in w3])
    expected = torch.tensor(expected, dtype=torch.float64).view_as(x)
    assert relative_rms(layer(x), expected) <= FLOAT64


def test_parameters():
    """Catches a bias, or a width other than the design's: 9 * dim ** 2 at three times the width."""
    layer = SwiGLU(64, 192, device="meta", dtype=torch.bfloat16)
    assert sum(p.numel() for p in layer.parameters()) == 9 * 64**2
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize("grid", [(2, 5), (5, 2), (1, 1)])
def test_the_convolution_is_of_the_gate(grid):
    """Catches a convolution of the values, of the projection's input, or on a grid turned by a quarter."""
    layer = SwiGLU(4, 6, conv=True, dtype=torch.float64)
    x = torch.randn(2, grid[0] * grid[1], 4, dtype=torch.float64)
    w1, w2 = layer.fc1.weight.chunk(2)
    images = (x @ w1.T).transpose(1, 2).reshape(2, 6, *grid)
    gate = nn.functional.conv2d(images, layer.conv.weight, padding=1, groups=6).flatten(2).transpose(1, 2)
    expected = (gate * gate.sigmoid() * (x @ w2.T)) @ layer.fc2.weight.T
    assert relative_rms(layer(x, grid), expected) <= FLOAT64
    assert relative_rms(layer.float()(x.float(), grid), expected) <= FLOAT32
    assert sum(p.numel() for p in layer.parameters()) == 3 * 4 * 6 + 9 * 6
    with pytest.raises(ValueError, match=r"grid: got None, .* write mlp\(x, grid\)"):
        layer(x.float())


@pytest.mark.parametrize("conv", [False, True])
def test_gradcheck(conv):
    """Catches a gradient that one of the two halves of the projection does not get."""
    layer = SwiGLU(3, 5, conv=conv, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def apply(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values)), (x, (2, 2)))

    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(apply, (x, *parameters.values()))


def test_dropout_is_on_in_training_alone():
    """Catches a rate that never arrives, or dropout at inference."""
    layer, x = SwiGLU(8, 16, drop=0.5), torch.randn(4, 8)
    assert (layer(x) == 0).any()
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert (layer(x) != 0).all()


class Adapted(nn.Linear):
    """A linear layer with something added to its output, as an adapter has."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C'], shifted."""
        return super().forward(x) + 1


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", ["fc1", "fc2"])
@pytest.mark.parametrize("way", ["hook", "pre_hook", "subclass", "bias", "own_forward", "backward_hook"])
def test_swiglu_layer_calls_what_is_put_in_its_place(way, name, training):
    """Catches a fused product that reads the weight and passes over a hook, an adapter or a bias."""
    layer = SwiGLU(12, 20).train(training)
    linear, calls = getattr(layer, name), []
    x = torch.randn(2, 7, 12, requires_grad=training)
    before = layer(x)
    if way == "hook":
        linear.register_forward_hook(lambda module, arguments, out: calls.append(1))
    elif way == "pre_hook":
        linear.register_forward_pre_hook(lambda module, arguments: calls.append(1))
    elif way == "backward_hook":
        linear.register_full_backward_hook(lambda module, inputs, outputs: calls.append(1))
    elif way == "own_forward":
        linear.forward = lambda x: (calls.append(1), nn.Linear.forward(linear, x))[1]
    else:
        other = (Adapted if way == "subclass" else nn.Linear)(
            linear.in_features, linear.out_features, bias=way == "bias"
        )
        other.weight = linear.weight
        setattr(layer, name, other)
    with torch.set_grad_enabled(training):
        out = layer(x)
    if way in ("subclass", "bias"):
        assert relative_rms(out, before) > 0.05
        return
    assert relative_rms(out, before) <= FLOAT32
    if way == "backward_hook":
        if not training:
            return
        out.sum().backward()
    assert calls == [1]


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_a_hook_of_the_convolution_is_called(training):
    """Catches an operator of a layer or a block that passes over a hook of the module it stands in for."""
    block, calls = MetaLABlock(32, 2, mlp_conv=True).train(training), []
    x = torch.randn(2, 6, 32)
    before = block(x, (2, 3))
    block.mlp.conv.register_forward_hook(lambda module, arguments, out: calls.append(out.shape))
    with torch.set_grad_enabled(training):
        assert relative_rms(block(x, (2, 3)), before) <= FLOAT32
    assert calls == [(2, 6, 96)]
