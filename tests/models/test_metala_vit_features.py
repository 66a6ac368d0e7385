"""MetaLA-ViT as a backbone: feature maps, checkpoints, changed sizes and patches."""

import pytest
import timm
import torch
from timm.layers import resample_patch_embed
from timm.models import save_for_hf
from tolerances import relative_rms
from torch.nn import functional as F
from vit_model import CLOSE, COLUMNS, ROWS, nano, tokens_of

# --- features


def test_features_only_by_default():
    """Catches wrong metadata: a detector reads channels and stride from feature_info."""
    model = timm.create_model("metala_vit_nano", features_only=True).eval()
    assert model.feature_info.channels() == [128] * 3
    assert model.feature_info.reduction() == [16] * 3
    assert model.feature_info.module_name() == ["blocks.3", "blocks.4", "blocks.5"]
    maps = model(torch.randn(2, 3, 40, 90))
    assert [tuple(x.shape) for x in maps] == [(2, 128, 3, 6)] * 3


@pytest.mark.parametrize(
    ("out_indices", "taken"),
    [((0, 2, 5), [0, 2, 5]), ((-1,), [5]), ((-4, -1), [2, 5]), (2, [4, 5]), ([1], [1])],
    ids=str,
)
def test_features_only_out_indices(out_indices, taken):
    """Catches an index counted from the wrong end, or maps that are not the outputs of those blocks."""
    full = timm.create_model("metala_vit_nano").eval()
    model = timm.create_model("metala_vit_nano", features_only=True, out_indices=out_indices).eval()
    model.model.load_state_dict(full.state_dict(), strict=False)
    seen = {}
    for i, block in enumerate(full.blocks):
        block.register_forward_hook(lambda _module, _inputs, output, i=i: seen.update({i: output}))
    x = torch.randn(1, 3, 40, 90)
    with torch.no_grad():
        maps = model(x)
        full(x)
    assert model.feature_info.module_name() == [f"blocks.{i}" for i in taken]
    assert len(maps) == len(taken)
    assert all(torch.equal(tokens_of(feature), seen[i]) for feature, i in zip(maps, taken))


def test_features_follow_the_patch_size():
    """Catches a stride of 16 in feature_info whatever the patch."""
    model = timm.create_model("metala_vit_nano", features_only=True, patch_size=8, out_indices=(-1,))
    assert model.feature_info.reduction() == [8]
    assert model(torch.randn(1, 3, 40, 64))[0].shape == (1, 128, 5, 8)


@pytest.mark.parametrize("norm", [False, True], ids=["raw", "norm"])
@pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
def test_forward_intermediates(output_fmt, norm):
    """Catches intermediates that differ from the forward pass they stand for."""
    model, x = nano(depth=4), torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        expected = model.forward_features(x)
        final, maps = model.forward_intermediates(x, indices=[1, 3], norm=norm, output_fmt=output_fmt)
        only = model.forward_intermediates(
            x, indices=[1, 3], norm=norm, output_fmt=output_fmt, stop_early=True, intermediates_only=True
        )
        assert torch.equal(final, expected)
        assert all(torch.equal(a, b) for a, b in zip(maps, only, strict=True))
        shape = (2, 128, 3, 5) if output_fmt == "NCHW" else (2, 15, 128)
        assert [tuple(y.shape) for y in maps] == [shape] * 2
        last = tokens_of(maps[-1]) if output_fmt == "NCHW" else maps[-1]
        assert torch.equal(last if norm else model.norm(last), expected)
        first = tokens_of(maps[0]) if output_fmt == "NCHW" else maps[0]
        assert not torch.equal(first, last)
        if output_fmt == "NCHW":
            assert all(y.is_contiguous() for y in maps)


def test_forward_intermediates_arguments():
    """Catches an argument of timm's signature that is accepted and ignored."""
    model, x = nano(depth=4), torch.randn(1, 3, 32, 32)
    assert len(model.forward_intermediates(x, intermediates_only=True)) == 4
    assert len(model.forward_intermediates(x, indices=2, intermediates_only=True)) == 2
    pairs = model.forward_intermediates(x, indices=1, return_prefix_tokens=True, intermediates_only=True)
    assert [tuple(y.shape) for y in pairs[0]] == [(1, 128, 2, 2), (1, 0, 128)]
    with pytest.raises(ValueError, match="^output_fmt: got 'NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")
    ran = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _module, _inputs, _output, i=i: ran.append(i))
    model.forward_intermediates(x, indices=[1], stop_early=True)
    assert ran == [0, 1]


def test_prune_intermediate_layers():
    """Catches a pruned model that computes something else than the whole one, or keeps what it no longer needs."""
    model, x = nano(depth=4), torch.randn(1, 3, 32, 48)
    (expected,) = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    assert model.prune_intermediate_layers([1], prune_norm=True) == [1]
    assert len(model.blocks) == 2
    assert isinstance(model.norm, torch.nn.Identity)
    assert isinstance(model.head, torch.nn.Identity)
    assert torch.equal(model.forward_intermediates(x, indices=[1], intermediates_only=True)[0], expected)


# --- sizes, patches, checkpoints


def test_set_input_size():
    """Catches a nominal size that changes in one place only, and weights that change with it."""
    model, x = nano(decay_scale="none"), torch.randn(1, 3, 64, 96)
    expected = model(x)
    model.set_input_size(img_size=(64, 96))
    assert model.patch_embed.img_size == (64, 96)
    assert model.patch_embed.grid_size == (4, 6)
    assert torch.equal(model(x), expected)
    model.set_input_size(patch_size=8)
    assert model.patch_embed.patch_size == (8, 8)
    assert {info["reduction"] for info in model.feature_info} == {8}
    assert model.forward_features(x).shape == (1, 96, 128)


def test_patch_embedding_is_resampled_from_a_checkpoint(tmp_path):
    """Catches a checkpoint that fails, or loads a cropped kernel, at another patch size or number of channels."""
    source = nano()
    torch.save(source.state_dict(), tmp_path / "model.pth")
    kwargs = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "model.pth"), num_classes=5))
    same = timm.create_model("metala_vit_nano", depth=2, num_classes=5, **kwargs).eval()
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), source.state_dict().values(), strict=True))

    small = timm.create_model("metala_vit_nano", depth=2, num_classes=5, patch_size=8, **kwargs)
    weight, original = small.patch_embed.proj.weight, source.patch_embed.proj.weight
    assert weight.shape == (128, 3, 8, 8)
    assert torch.equal(weight, resample_patch_embed(original, [8, 8]))
    assert torch.equal(small.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)

    # What defines the resampling: a larger patch answers to an enlarged image as the original does to the image.
    large = timm.create_model("metala_vit_nano", depth=2, num_classes=5, patch_size=32, **kwargs)
    image = torch.randn(4, 3, 16, 16)
    enlarged = F.interpolate(image, (32, 32), mode="bicubic", antialias=True)
    assert relative_rms(large.patch_embed(enlarged), source.patch_embed(image)) <= 1e-4

    grey = timm.create_model("metala_vit_nano", depth=2, num_classes=5, in_chans=1, **kwargs)
    assert relative_rms(grey.patch_embed.proj.weight, original.sum(1, keepdim=True)) <= CLOSE

    fresh = timm.create_model("metala_vit_nano", depth=2, num_classes=9, **kwargs)
    assert fresh.head.out_features == 9
    assert torch.equal(fresh.norm.weight, source.norm.weight)


def test_checkpoint_at_another_image_size(tmp_path):
    """Catches a buffer or parameter that depends on the image size, the commonest complaint about rivals."""
    source = nano(img_size=224)
    torch.save(source.state_dict(), tmp_path / "model.pth")
    model = timm.create_model(
        "metala_vit_nano", depth=2, num_classes=5, img_size=160, checkpoint_path=tmp_path / "model.pth"
    ).eval()
    assert model.state_dict().keys() == source.state_dict().keys()
    assert all(torch.equal(x, source.state_dict()[name]) for name, x in model.state_dict().items())
    x = torch.randn(1, 3, 160, 160)
    assert torch.equal(model(x), source(x))
    assert model.patch_embed.grid_size == (10, 10)


@pytest.mark.parametrize(("safe", "pool"), [(False, "max"), (True, "")], ids=["bin-max", "safetensors-tokens"])
def test_save_for_hf_and_load_local_dir(tmp_path, safe, pool):
    """Catches arguments that the saved configuration forgets: the model comes back without its maker's help."""
    source = nano(scan="cross", img_size=96)
    source.reset_classifier(7, pool)
    source.eval()
    save_for_hf(source, tmp_path, safe_serialization=safe)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert (loaded.num_classes, loaded.global_pool) == (7, pool)
    assert [list(block.mixer.scan) for block in loaded.blocks] == [ROWS + COLUMNS] * 2
    x = torch.randn(1, 3, 48, 80)
    assert torch.equal(loaded(x), source(x))
