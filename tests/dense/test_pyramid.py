"""The feature pyramid over our models and timm's: sizes, gradients, and the names in its errors."""

import pytest
import timm
import torch

from metala_vision.dense import FeatureMap, PyramidNeck, SimpleFeaturePyramid, trunk_arguments
from metala_vision.errors import InputError

SIZES = [(64, 64), (96, 160), (70, 101), (33, 47)]
SMALL = dict(embed_dim=32, depth=2, num_heads=1)
TRUNKS = {
    "metala_vit_nano": SMALL,
    "vit_tiny_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "xcit_nano_12_p16_224": {},
    "resnet18": {},
    "convnext_atto": {},
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["metala_vit_nano", "vit_tiny_patch16_224"])
def test_sizes(name, size):
    """Catches maps of the padding, or maps that torchvision's anchors would not fit."""
    pyramid = SimpleFeaturePyramid(name, out_channels=8, strides=(4, 8, 16, 32, 64), **SMALL)
    maps = pyramid(torch.randn(2, 3, *size))
    assert list(maps) == ["0", "1", "2", "3", "4"]
    assert pyramid.out_channels == 8
    for stride, x in zip((4, 8, 16, 32, 64), maps.values()):
        assert x.shape == (2, 8, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("name", TRUNKS)
def test_every_parameter_is_trained(name):
    """Catches what distributed training stops at: parameters without gradients."""
    options = TRUNKS[name]
    strides = (8, 16, 32, 64) if name in ("resnet18", "convnext_atto") else (4, 8, 16, 32)
    pyramid = SimpleFeaturePyramid(name, out_channels=8, strides=strides, **options)
    maps = pyramid(torch.randn(2, 3, 64, 96))
    assert [x.shape[-1] for x in maps.values()] == [-(-96 // s) for s in strides]
    sum(x.square().mean() for x in maps.values()).backward()
    assert not [name for name, p in pyramid.named_parameters() if p.grad is None]


@pytest.mark.parametrize("name", ["metala_vit_nano", "vit_tiny_patch16_224", "resnet18"])
def test_of_a_module(name):
    """A model made with features_only gives what forward_intermediates gives."""
    torch.manual_seed(1)
    size = {} if name == "resnet18" else dict(img_size=64, **SMALL)
    plain = timm.create_model(name, **size).eval()
    features = timm.create_model(name, features_only=True, out_indices=(-1,), **size).eval()
    inner = getattr(features, "model", features)
    inner.load_state_dict({key: plain.state_dict()[key] for key in inner.state_dict()})
    x = torch.randn(1, 3, 64, 64)
    expected = plain.forward_intermediates(x, indices=[-1], intermediates_only=True)[0]
    one, other = FeatureMap(plain), FeatureMap(features)
    assert (one.channels, one.stride) == (other.channels, other.stride)
    torch.testing.assert_close(other(x), expected)
    if one.normalises:  # and then by its final norm
        expected = plain.norm(expected.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(one(x), expected)


def test_an_earlier_block():
    model = timm.create_model("metala_vit_nano", img_size=32, **{**SMALL, "depth": 4})
    x = torch.randn(1, 3, 32, 32)
    expected = model.forward_intermediates(x, indices=[1], norm=True, intermediates_only=True)[0]
    body = FeatureMap(model, 1)
    torch.testing.assert_close(body(x), expected)
    assert len(model.blocks) == 2, "what comes after it is taken off"


def test_a_level_at_the_stride_of_the_map_is_a_projection():
    """By hand: the level is two convolutions with norms, and nothing else."""
    neck = PyramidNeck(6, 16, 4, (16,))
    x = torch.randn(1, 6, 3, 5)
    conv1, norm1, conv2, norm2 = neck.levels[0]
    torch.testing.assert_close(neck(x, (48, 80))[0], norm2(conv2(norm1(conv1(x)))))
    shifted = neck(torch.roll(x, 1, 3), (48, 80))[0]
    torch.testing.assert_close(shifted[..., 2:-1], neck(x, (48, 80))[0][..., 1:-2])


def test_dynamic_sizes_give_what_a_fixed_size_gives():
    torch.manual_seed(2)
    arguments = trunk_arguments("vit_tiny_patch16_224")
    assert arguments["dynamic_img_size"]
    assert trunk_arguments("metala_vit_nano") == dict(num_classes=0)
    fixed = timm.create_model("vit_tiny_patch16_224", img_size=(48, 64), num_classes=0, global_pool="", **SMALL)
    dynamic = timm.create_model("vit_tiny_patch16_224", img_size=(48, 64), **arguments, **SMALL)
    dynamic.load_state_dict(fixed.state_dict())
    x = torch.randn(1, 3, 48, 64)
    torch.testing.assert_close(FeatureMap(fixed.eval())(x), FeatureMap(dynamic.eval())(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SimpleFeaturePyramid("metala_vit_tinny"),
            r"backbone: unknown model 'metala_vit_tinny' \(did you mean",
        ),
        (lambda: SimpleFeaturePyramid(torch.nn.Linear(2, 2)), "backbone: Linear has neither forward_intermediates"),
        (lambda: SimpleFeaturePyramid("metala_vit_nano", index=9, **SMALL), "index: got 9, but MetaLAViT has 2 maps"),
        (lambda: PyramidNeck(8, 16, 8, (4, 12)), "strides: 12 cannot be made from a map of stride 16"),
        (lambda: PyramidNeck(8, 14, 8, (4,)), "strides: 4 cannot be made from a map of stride 14"),
        (lambda: PyramidNeck(8, 16, 8, (8, 4)), r"strides: got \(8, 4\), expected ascending"),
        (lambda: PyramidNeck(8, 16, 8, ()), "strides: got"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=f"^{message}"):
        make()
