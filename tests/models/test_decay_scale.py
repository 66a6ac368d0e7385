"""Models on other grids than their own: the same where they were trained, scaled elsewhere, in every way they run."""

import copy

import pytest
import timm
import torch

import metala_vision  # noqa: F401

SIZES = ((64, 64), (128, 32), (96, 160), (32, 48))


def model(**options):
    torch.manual_seed(0)
    made = timm.create_model("metala_vit_nano", img_size=64, num_classes=5, depth=4, **options).eval()
    for name, parameter in made.named_parameters():
        if "proj" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.mark.parametrize("scan", ["cycle", "alternate", "cross", "row", "causal", ("row", "column")])
def test_the_size_of_the_training_is_as_before(scan):
    """Catches numbers of older weights that change where nothing is to be scaled."""
    scaled, plain = model(scan=scan), model(scan=scan, decay_scale="none")
    for height, width in SIZES:
        x = torch.randn(2, 3, height, width)
        assert torch.equal(scaled(x), plain(x)) == (height * width == 64 * 64)


def test_set_input_size_is_the_grid_of_the_weights_to_come():
    x = torch.randn(1, 3, 96, 160)
    changed = model()
    changed.set_input_size((96, 160))
    assert torch.equal(changed(x), model(decay_scale="none")(x))


def test_parts_of_a_model_scale_too():
    """Catches blocks that are taken out of a model and forget its grid."""
    whole, x = model(), torch.randn(1, 3, 96, 160)
    features = timm.create_model("metala_vit_nano", img_size=64, depth=4, features_only=True, out_indices=(3,)).eval()
    missing, _ = features.model.load_state_dict(whole.state_dict(), strict=False)  # it has no head
    assert not missing
    assert torch.equal(features(x)[0], whole.forward_intermediates(x, 1, intermediates_only=True)[0])
    assert {block.mixer.nominal_grid for block in whole.blocks} == {(4, 4)}


def test_the_grid_travels_with_the_weights(tmp_path):
    """Catches a model of another img_size that takes its own size for that of the weights, and a copy that forgets."""
    trained, x = model(), torch.randn(1, 3, 96, 160)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    other = timm.create_model(
        "metala_vit_nano", img_size=(96, 160), num_classes=5, depth=4, checkpoint_path=str(tmp_path / "weights.pth")
    ).eval()
    assert torch.equal(other(x), trained(x))
    assert torch.equal(copy.deepcopy(other)(x), trained(x))
    with torch.device("meta"):
        empty = timm.create_model("metala_vit_nano", img_size=224, num_classes=5, depth=4).eval()
    empty.load_state_dict(trained.state_dict(), assign=True)
    assert torch.equal(empty(x), trained(x))


def test_older_weights_give_the_numbers_they_gave():
    """Catches weights without a grid or a bias of the decay that are refused, or take them from the model."""
    trained, x = model(decay_scale="none", decay_bias=False), torch.randn(1, 3, 96, 160)
    older = {name: value for name, value in trained.state_dict().items() if name != "nominal_grid"}
    taken = model()
    assert taken.load_state_dict(older) == ([], [])
    assert torch.equal(taken(x), trained(x))
    assert taken.nominal_grid.tolist() == [0, 0], "and they say so when they are saved again"
    taken.set_input_size(64)
    assert torch.equal(taken(x), model(decay_bias=False)(x)), "until somebody says what they were trained on"


def test_a_head_that_is_loaded_alone_leaves_the_grid():
    """Catches weights without blocks, such as a classifier's or an adapter's, that are taken for older ones."""
    taken, x = model(), torch.randn(1, 3, 96, 160)
    expected = taken(x)
    head = {name: value for name, value in taken.state_dict().items() if name.startswith("head")}
    taken.load_state_dict(head, strict=False)
    assert torch.equal(taken(x), expected)


def test_an_unknown_rule():
    with pytest.raises(ValueError, match="decay_scale: got 'area', expected one of"):
        timm.create_model("metala_vit_nano", decay_scale="area")
