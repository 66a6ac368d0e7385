"""DeiT with InLine and ZeroS: the published sizes, the formula with a class token, and the grid of the patches."""

import math

import pytest
import timm
import torch
from tolerances import FLOAT32, relative_rms
from torch import Tensor
from torch.nn import functional as F

from metala_vision.layers.mixers import ZeroS
from metala_vision.models.linear_deit import InLineAttention, ZeroSAttention
from metala_vision.profiling.macs.count import count

EXACT = 1e-10
TINY = ["inline_deit_tiny_patch16_224", "zeros_deit_tiny_patch16_224"]


@pytest.mark.parametrize(
    ("name", "size", "parameters", "macs"),
    [
        ("inline_deit_tiny_patch16_224", 224, 6.48, 1.1),
        ("inline_deit_small_patch16_288", 288, 16.73, 5.0),
        ("inline_deit_base_patch16_448", 448, 23.80, 17.2),
    ],
)
def test_published_sizes(name, size, parameters, macs):
    """Millions of parameters and GFLOPs in the paper's table (arXiv 2412.06590, and its released code counted)."""
    cost = count(timm.create_model(name), size)
    assert round(cost.parameters / 1e6, 2) == parameters
    assert round(cost.macs / 1e9, 1) == macs
    assert cost.products == cost.torch


def test_size_of_zeros():
    """Per block 5 C^2 and two gates a head, instead of DeiT's 4 C^2 + 4 C; a prior for each channel and head."""
    deit, zeros = timm.create_model("deit_tiny_patch16_224"), timm.create_model("zeros_deit_tiny_patch16_224")
    sizes = [sum(p.numel() for p in model.parameters()) for model in (deit, zeros)]
    assert sizes[1] - sizes[0] == 12 * (192 * 192 - 4 * 192 + 2 * 3 * 192 + 192 + 3)


def inline_by_the_paper(attention: InLineAttention, x: Tensor) -> Tensor:
    """One image [1 + N, C]: weights q . k - mean + 1 over all tokens, and the neighbourhood on the patches alone."""
    heads, (rows, cols) = attention.num_heads, attention.grid
    tokens, dim = x.shape
    q, k, v = (x @ w.T + b for w, b in zip(attention.qkv.weight.split(dim), attention.qkv.bias.split(dim)))
    parts = []
    for h in range(heads):
        own = slice(h * dim // heads, (h + 1) * dim // heads)
        scores = q[:, own] @ k[:, own].T / math.sqrt(dim // heads)
        parts.append((scores - scores.mean(1, keepdim=True) + 1) / tokens @ v[:, own])
    o = torch.cat(parts, 1)
    weight = x.mean(0)
    for layer in (attention.residual.fc1, attention.residual.fc2):
        weight = F.gelu(weight) if layer is attention.residual.fc2 else weight
        pieces = [w @ t for w, t in zip(layer.weight[..., 0].chunk(heads), weight.chunk(heads))]
        weight = torch.cat(pieces) + layer.bias
    image = v[1:].T.reshape(1, dim, rows, cols)
    local = F.conv2d(image, weight.reshape(dim, 1, 3, 3), padding=1, groups=dim).reshape(dim, -1).T
    o = o + torch.cat([torch.zeros_like(o[:1]), local])
    return o @ attention.proj.weight.T + attention.proj.bias


def test_inline_with_a_class_token():
    attention = InLineAttention(24, 3, dtype=torch.float64)
    with torch.no_grad():
        for p in attention.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
    attention.grid = (3, 4)
    x = torch.randn(2, 13, 24, dtype=torch.float64, requires_grad=True)
    weights, direction = [x, *attention.parameters()], torch.randn(2, 13, 24, dtype=torch.float64)
    actual, expected = attention(x), torch.stack([inline_by_the_paper(attention, image) for image in x])
    assert relative_rms(actual, expected) <= EXACT
    found = torch.autograd.grad((actual * direction).sum(), weights)
    wanted = torch.autograd.grad((expected * direction).sum(), weights)
    assert all(relative_rms(one, other) <= EXACT for one, other in zip(found, wanted))


def test_zeros_with_a_class_token():
    """It is the mixer of the grid without rotation and convolution, and the class token is a token like the others."""
    attention = ZeroSAttention(24, 3, dtype=torch.float64)
    mixer = ZeroS(24, 3, local_conv=False, rotary=False, dtype=torch.float64)
    mixer.load_state_dict(attention.state_dict())
    attention.grid = (3, 4)
    x = torch.randn(2, 13, 24, dtype=torch.float64)
    assert torch.equal(attention(x), mixer(x, (1, 13)))
    order = torch.randperm(13)
    assert relative_rms(attention(x[:, order]), attention(x)[:, order]) <= EXACT


@pytest.mark.parametrize("name", TINY)
def test_training_and_other_sizes(name):
    """Every parameter learns; a grid that is not square; a checkpoint and `set_input_size` at another size."""
    torch.manual_seed(0)
    model = timm.create_model(name, depth=2, num_classes=5, img_size=48)
    x = torch.randn(2, 3, 48, 48)
    F.cross_entropy(model(x), torch.tensor([0, 3])).backward()
    for key, p in model.named_parameters():
        assert p.grad.isfinite().all(), key
        unread = "blocks.1.attn.residual" in key  # it changes the patches alone, behind which is the class token
        assert (p.grad.abs().max() > 0) != unread, key
    model.eval()
    other = timm.create_model(name, depth=2, num_classes=5, img_size=(64, 96)).eval()
    other.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(model.state_dict(), other))
    model.set_input_size(img_size=(64, 96))
    larger = torch.randn(1, 3, 64, 96)
    assert relative_rms(other(larger), model(larger)) <= FLOAT32
    with pytest.raises(AssertionError, match="doesn't match model"):
        model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert relative_rms(compiled(larger), model(larger)) <= FLOAT32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(dynamic_img_size=True), "dynamic_img_size: got True, expected False"),
        (dict(reg_tokens=4), "reg_tokens: got 4, expected 0"),
        (dict(class_token=False, global_pool="avg"), "class_token: got False, expected True"),
        (dict(patch_drop_rate=0.5), "patch_drop_rate: got 0.5, expected 0.0"),
        (dict(qk_norm=True), "qk_norm: got .*, which this attention does not have"),
        (dict(attn_drop_rate=0.1), "attn_drop: got .*, which this attention does not have"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", TINY)
def test_what_it_does_not_have(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **arguments)


@pytest.mark.parametrize("name", TINY)
def test_masks_are_refused(name):
    attention = timm.create_model(name, depth=1).blocks[0].attn
    with pytest.raises(ValueError, match="attn_mask, is_causal"):
        attention(torch.randn(1, 197, 192), is_causal=True)
