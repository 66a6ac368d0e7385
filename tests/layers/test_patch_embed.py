"""The patch embedding in bands against the convolution that it stands for."""

import pytest
import torch
from tolerances import FLOAT32, HALF, relative_rms
from torch import Tensor, nn
from torch.nn import functional as F
from torchscript import trace
from torchvision.models.feature_extraction import create_feature_extractor

from metala_vision.layers import PatchEmbed, patch_embed


def convolved(layer: PatchEmbed, x: Tensor) -> Tensor:
    """With zeros up to whole patches, written out."""
    height, width = layer.patch_size
    image = x.new_zeros(*x.shape[:2], -(-x.shape[2] // height) * height, -(-x.shape[3] // width) * width)
    image[:, :, : x.shape[2], : x.shape[3]] = x
    return F.conv2d(image, layer.proj.weight, layer.proj.bias, stride=layer.patch_size).permute(0, 2, 3, 1)


@pytest.mark.parametrize("band", [1, 5, 512])
@pytest.mark.parametrize("patch", [4, (2, 3)], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (1, 1, 17, 5), (3, 2, 3, 2), (0, 3, 16, 24)], ids=str)
def test_bands_equal_the_convolution(monkeypatch, shape, patch, band):
    """Catches patches that are lost or shifted between two bands, and padding between them or on the wrong side."""
    monkeypatch.setattr(patch_embed, "BAND", band)
    layer, x = PatchEmbed(8, patch, shape[1], 20), torch.randn(shape)
    with torch.no_grad():
        out = layer(x)
        assert out.is_contiguous()
        assert relative_rms(out, convolved(layer, x)) <= FLOAT32
        assert relative_rms(layer(x.contiguous(memory_format=torch.channels_last)), out) <= FLOAT32
        with torch.autocast("cpu", torch.bfloat16):
            half = layer(x)
        assert half.dtype == torch.bfloat16
        assert relative_rms(half, out) <= HALF
    assert relative_rms(layer(x), out) <= FLOAT32


def test_gradients():
    """Catches a training that goes in bands of something without gradients."""
    layer, x = PatchEmbed(8, 4, 3, 20), torch.randn(2, 3, 10, 9, requires_grad=True)
    leaves = [x, *layer.parameters()]
    weight = torch.randn(2, 3, 3, 20)
    found = torch.autograd.grad((layer(x) * weight).sum(), leaves)
    expected = torch.autograd.grad((convolved(layer, x) * weight).sum(), leaves)
    assert all(relative_rms(a, b) <= FLOAT32 for a, b in zip(found, expected))


@pytest.mark.parametrize("way", ["hook", "module"])
def test_calls_what_is_put_in_its_place(way):
    """Catches bands that pass a hook or an adapter by."""
    layer, x, calls = PatchEmbed(8, 4, 3, 20), torch.randn(1, 3, 8, 8), []
    if way == "hook":
        layer.proj.register_forward_hook(lambda *arguments: calls.append(1))
    else:
        layer.proj = nn.Sequential(layer.proj, nn.ReLU())
    with torch.no_grad():
        out = layer(x)
    assert calls == [1] if way == "hook" else out.min() == 0


def test_a_tracer_sees_one_convolution():
    """Catches a graph with the bands of one image size in it."""
    layer = PatchEmbed(8, 4, 3, 20).eval()
    x, other = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 64, 40)
    with torch.no_grad():
        traced = trace(layer, x)
        assert sum(node.kind() == "aten::_convolution" for node in traced.inlined_graph.nodes()) == 1
        exported = torch.export.export(layer, (x,))
        assert sum("conv2d" in str(node.target) for node in exported.graph.nodes) == 1
        compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
        assert relative_rms(compiled(other), layer(other)) <= FLOAT32


def test_feature_extraction_by_fx():
    """Catches a question about a parameter that FX cannot answer: to its tracer every parameter is a symbol."""
    layer, x = PatchEmbed(8, 4, 3, 20), torch.randn(1, 3, 8, 9)
    extractor = create_feature_extractor(layer, ["proj"])
    assert relative_rms(extractor(x)["proj"].permute(0, 2, 3, 1), convolved(layer, x)) <= FLOAT32
