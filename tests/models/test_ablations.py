"""The parts that can be left out or added: each switch does just what it says, and nothing by default."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from tolerances import relative_rms
from torch import nn
from torchscript import script
from vit_model import CLOSE, nano

from metala_vision.errors import InputError
from metala_vision.models.checkpoints import checkpoint_filter_fn

SWITCHES = [dict(local_conv=False), dict(self_aug=False), dict(mlp_conv=True), dict(pos_embed="learn")]


def test_without_convolution():
    """The other model with a convolution that hands on what it gets, and no SiLU behind it."""
    model = nano(local_conv=False)
    with_conv = nano()
    missing = with_conv.load_state_dict(model.state_dict(), strict=False)
    assert all(".conv." in key for key in missing.missing_keys)
    assert len(missing.missing_keys) == 2
    assert not missing.unexpected_keys
    for block in with_conv.blocks:
        block.mixer.conv.forward = lambda x, grid: x
    x = torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        assert relative_rms(model(x), with_conv(x)) < CLOSE


def test_without_self_augmentation():
    """The other model with w_aug at zero; nothing of it is a parameter or in a checkpoint."""
    model = nano(self_aug=False)
    full = nano()
    missing = full.load_state_dict(model.state_dict(), strict=False)
    assert all(key.endswith("aug_weight") for key in missing.missing_keys)
    assert len(missing.missing_keys) == 2
    x = torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        for block in full.blocks:
            block.mixer.aug_weight.mul_(100)
        before = full(x)
        for block in full.blocks:
            block.mixer.aug_weight.zero_()
        assert relative_rms(model(x), full(x)) < CLOSE
    assert relative_rms(before, full(x).detach()) > 1e-3
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_convolution_in_the_swiglu():
    """The model without it where it hands on what it gets; and it sees the neighbours on the grid."""
    model, plain = nano(mlp_conv=True), nano()
    missing = plain.load_state_dict(model.state_dict(), strict=False)
    assert [tuple(model.state_dict()[key].shape) for key in missing.unexpected_keys] == 2 * [(384, 1, 3, 3)]
    assert not missing.missing_keys
    x = torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        before = model(x)
        for block in model.blocks:
            block.mlp.conv.weight.zero_()
            block.mlp.conv.weight[:, :, 1, 1] = 1
        assert relative_rms(model(x), plain(x)) < CLOSE
    assert relative_rms(before, plain(x).detach()) > 1e-3
    model.train()(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for block in model.blocks for p in block.mlp.parameters())


def test_learned_position_embedding():
    """It is added to the patches; at another size it is resampled; it is trained without weight decay, as the stem."""
    model = nano(pos_embed="learn", img_size=(32, 48), decay_scale="none")
    assert model.pos_embed.shape == (1, 6, 128)
    plain = nano(img_size=(32, 48))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "pos_embed"})
    x = torch.randn(2, 3, 32, 48)
    plain.patch_embed.register_forward_hook(lambda *args: args[2] + model.pos_embed.reshape(1, 2, 3, 128))
    with torch.no_grad():
        assert relative_rms(model(x), plain(x)) < CLOSE
        other = torch.randn(1, 3, 70, 100)
        before = model(other)
        model.set_input_size(img_size=(70, 100))
        assert model.pos_embed.shape == (1, 35, 128)
        assert relative_rms(model(other), before) < CLOSE
    assert model.no_weight_decay() == {"pos_embed"}
    groups = param_groups_layer_decay(model, no_weight_decay_list=model.no_weight_decay())
    stem = [group for group in groups if any(p is model.pos_embed for p in group["params"])]
    assert stem[0]["lr_scale"] == min(group["lr_scale"] for group in groups)
    assert stem[0]["weight_decay"] == 0
    model.train()(other).sum().backward()
    assert model.pos_embed.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [(32, 128), (64, 16), (32, 64)])
def test_position_embedding_of_a_grid_that_is_not_square(size):
    """Catches rows for columns, where the tokens are a square number, and an error where they are none."""
    wide, square = nano(pos_embed="learn", img_size=size), nano(pos_embed="learn", img_size=64)
    with torch.no_grad():
        wide.pos_embed.copy_(torch.randn_like(wide.pos_embed))
    same = checkpoint_filter_fn(wide.state_dict(), wide)["pos_embed"]
    assert torch.equal(same, wide.pos_embed)
    found = checkpoint_filter_fn(wide.state_dict(), square)["pos_embed"]
    rows, cols = size[0] // 16, size[1] // 16
    image = wide.pos_embed.detach().reshape(1, rows, cols, 128).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(image, (4, 4), mode="bicubic", antialias=True)
    assert relative_rms(found, expected.permute(0, 2, 3, 1).reshape(1, 16, 128)) < CLOSE
    old = {key: value for key, value in wide.state_dict().items() if key != "nominal_grid"}
    if rows * cols == 8:
        with pytest.raises(InputError, match="its position embedding has 8 tokens, which are no square"):
            checkpoint_filter_fn(old, square)


def test_position_embedding_of_a_checkpoint_is_resampled():
    small, large = nano(pos_embed="learn", img_size=32), nano(pos_embed="learn", img_size=64)
    large.load_state_dict(checkpoint_filter_fn(small.state_dict(), large))
    small.set_input_size(img_size=64)
    assert torch.equal(small.pos_embed, large.pos_embed)


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("scan", ["alternate", "causal"])
def test_switches_in_training_and_evaluation(switch, scan):
    """One arithmetic in training, in inference and by TorchScript."""
    model = nano(scan=scan, **switch)
    x = torch.randn(2, 3, 48, 80)
    expected = model.train()(x)
    with torch.inference_mode():
        assert relative_rms(model.eval()(x), expected.detach()) < CLOSE
        assert relative_rms(script(model)(x), expected.detach()) < CLOSE


def test_defaults():
    model = nano()
    assert model.pos_embed is None
    assert isinstance(model.blocks[0].mixer.aug_weight, nn.Parameter)
    with pytest.raises(ValueError, match="pos_embed: got 'sin', expected 'none' or 'learn'"):
        timm.create_model("metala_vit_nano", pos_embed="sin")
