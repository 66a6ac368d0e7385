"""What others ask of a timm ViT: its attributes, its forward pass written out, tokens under a mask."""

import pytest
import timm
import torch
from tolerances import FLOAT32, relative_rms
from torch import Tensor, nn
from vit_model import nano


def by_parts(vit: nn.Module, x: Tensor) -> Tensor:
    """forward_features as clients of timm write it out."""
    x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x))))
    return vit.norm(vit.blocks(x))


def test_attributes_of_a_vit():
    """Catches an attribute that timm's ViT has and clients read, absent or untrue."""
    model, timms = nano(), timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg", depth=1)
    names = "cls_token reg_token num_prefix_tokens num_reg_tokens has_class_token attn_pool global_pool"
    for name in names.split():
        assert getattr(model, name) == getattr(timms, name), name
    assert model.dynamic_img_size
    assert model.no_embed_class
    assert isinstance(model.blocks, type(timms.blocks))


@pytest.mark.parametrize(
    ("size", "grid"), [((32, 48), (2, 3)), ((33, 50), (3, 4)), ((15, 1), (1, 1))], ids=lambda s: f"{s[0]}x{s[1]}"
)
def test_nominal_grid_is_that_of_the_tokens(size, grid):
    """Catches a grid_size that leaves out the padded patches, for which decoders then have no place."""
    model = nano(img_size=size)
    assert model.patch_embed.grid_size == model.pos_grid == grid
    assert model.patch_embed.num_patches == model.forward_features(torch.randn(1, 3, *size)).shape[1]


@pytest.mark.parametrize("pos_embed", ["none", "learn"])
def test_forward_pass_by_its_parts(pos_embed):
    """Catches a part that is missing or that the model itself passes over; a block can be told of another grid."""
    model, x = nano(img_size=(33, 50), pos_embed=pos_embed), torch.randn(2, 3, 33, 50)
    with torch.no_grad():
        assert torch.equal(by_parts(model, x), model.forward_features(x))
        model.set_input_size((48, 80))
        x = torch.randn(2, 3, 48, 80)
        assert torch.equal(by_parts(model, x), model.forward_features(x))
        for name in ("pos_drop", "patch_drop", "norm_pre"):
            setattr(model, name, nn.Hardtanh(-1e-3, 1e-3))
            assert torch.equal(by_parts(model, x), model.forward_features(x))
            assert model.forward_features(x).abs().max() > 0
        tokens = model._pos_embed(model.patch_embed(torch.randn(2, 3, 16, 80)))
        assert model.blocks[0](tokens, (1, 5)).shape == (2, 5, 128)


def test_tokens_without_their_grid():
    """Catches dropped tokens that are scanned as if they were a smaller image: 4 of 16 would make a square."""
    model = nano(img_size=64)
    tokens = model._pos_embed(model.patch_embed(torch.randn(2, 3, 64, 64)))
    with pytest.raises(ValueError, match=r"grid: got None for 4 tokens, expected the 4 \* 4 patches .* mask token"):
        model.blocks(tokens[:, :4])
    block = type(model.blocks[0])(16, 2)
    with pytest.raises(ValueError, match=r"expected \(rows, cols\) of the tokens: write block\(x, grid\)"):
        block(torch.randn(1, 4, 16))


def test_intermediate_layers():
    """Catches DINO's interface in another order or format than forward_intermediates."""
    model, x = nano(depth=4), torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[1, 3], norm=True, intermediates_only=True)
        found = model.get_intermediate_layers(x, n=(1, 3), reshape=True, norm=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert [y.shape for y in model.get_intermediate_layers(x, n=2)] == [(1, 6, 128)] * 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightly")
def test_under_lightlys_masks():
    """Catches masked tokens that lightly replaces and our blocks do not take, and dropped ones that they do."""
    modules = pytest.importorskip("lightly.models.modules", reason="lightly is not installed: pip install lightly")
    model = nano(img_size=64, pos_embed="learn", num_classes=0)
    wrapper = modules.MaskedVisionTransformerTIMM(model, pos_embed_initialization="learn").eval()
    x, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 16) > 0.5
    with torch.no_grad():
        assert relative_rms(wrapper(x), model(x)) <= FLOAT32
        assert relative_rms(wrapper(x, mask=mask), model(x)) > FLOAT32
        hidden = torch.where(mask.reshape(2, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3), 9.0, x)
        assert torch.equal(wrapper(hidden, mask=mask), wrapper(x, mask=mask))
        with pytest.raises(ValueError, match="grid: got None for 8 tokens"):
            wrapper(x, idx_keep=torch.arange(8).repeat(2, 1))
