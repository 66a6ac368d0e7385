"""The channel mixer against its formula."""

import math

import torch
from tolerances import FLOAT64, relative_rms

from metala_vision.layers import SwiGLU


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


def test_gradcheck():
    """Catches a gradient that one of the two halves of the projection does not get."""
    layer = SwiGLU(3, 5, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def apply(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values)), (x,))

    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(apply, (x, *parameters.values()))


def test_dropout_is_on_in_training_alone():
    """Catches a rate that never arrives, or dropout at inference."""
    layer, x = SwiGLU(8, 16, drop=0.5), torch.randn(4, 8)
    assert (layer(x) == 0).any()
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert (layer(x) != 0).all()
