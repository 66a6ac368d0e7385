"""Models of other token mixers than MetaLA: by name, in turns, with a mixer of one's own."""

import pytest
import timm
import torch
from tolerances import FLOAT32, relative_rms
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchscript import script
from vit_model import CLOSE, nano

from metala_vision.layers import MIXERS, MetaLA, register_mixer
from metala_vision.layers.mixers import GLA, Softmax

OTHERS = sorted(set(MIXERS) - {"metala"})


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_training_and_inference(name):
    """One arithmetic in training, inference, TorchScript and a compiler, and every parameter learns from the start."""
    torch.manual_seed(0)
    model = timm.create_model("metala_vit_nano", depth=4, num_classes=5, mixer=name)
    x = torch.randn(2, 3, 48, 80)
    expected = model.train()(x)
    nn.functional.cross_entropy(expected, torch.tensor([0, 3])).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
        assert p.grad.abs().max() > 0, key
    model.eval()
    for run in (model, script(model), torch.compile(model, fullgraph=True, backend="aot_eager")):
        with torch.no_grad():
            assert relative_rms(run(x), expected) < FLOAT32


@pytest.mark.parametrize("name", OTHERS)
def test_initialised_again(name):
    """Catches a parameter that `init_weights` leaves as it was, as after `to_empty`, and one with two beginnings."""
    model = timm.create_model("metala_vit_nano", depth=2, num_classes=5, mixer=name)
    before = {key: p.clone() for key, p in model.named_parameters()}
    with torch.device("meta"):
        empty = timm.create_model("metala_vit_nano", depth=2, num_classes=5, mixer=name)
    again = empty.to_empty(device="cpu")
    with torch.no_grad():
        for p in again.parameters():
            p.fill_(float("nan"))
    again.init_weights()
    for key, p in again.named_parameters():
        assert p.isfinite().all(), key
        assert (p.std() - before[key].std()).abs() <= 0.2 * before[key].std() or p.numel() < 20, key
        if ".mixer." in key and p.dim() == 1 and ".fc" not in key:
            assert torch.equal(p, before[key]), key
    with torch.no_grad():
        assert again.eval()(torch.randn(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("name", MIXERS)
def test_an_empty_batch(name):
    """A batch whose pictures were all unreadable: no logits, and gradients of zero."""
    model = timm.create_model("metala_vit_nano", depth=1, num_classes=5, mixer=name)
    out = model(torch.zeros(0, 3, 48, 80))
    assert out.shape == (0, 5)
    out.sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_blocks_take_mixers_in_turns():
    model = nano(depth=5, mixer=("metala", "gla", "softmax"))
    assert [type(block.mixer) for block in model.blocks] == [MetaLA, GLA, Softmax, MetaLA, GLA]
    assert model.blocks[4].mixer.scan == ("row",)  # the orders go on in turns too
    assert [hasattr(block.mixer, "nominal_grid") for block in model.blocks] == [True, True, False, True, True]
    listed = nano(depth=3, mixer=["softmax", "metala"])
    assert [type(block.mixer) for block in listed.blocks] == [Softmax, MetaLA, Softmax]


def test_decay_of_other_mixers_follows_the_grid():
    for name in ("gla", "retnet", "ssd", "hgrn"):
        scaled = nano(img_size=48, mixer=name)
        fixed = nano(img_size=48, mixer=name, decay_scale="none")
        fixed.load_state_dict(scaled.state_dict())
        at_nominal, larger = torch.randn(2, 3, 48, 48), torch.randn(2, 3, 160, 96)
        with torch.no_grad():
            assert torch.equal(scaled(at_nominal), fixed(at_nominal))
            assert relative_rms(scaled(larger), fixed(larger)) > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mixer="mamba"), r"mixer: got 'mamba', expected one of \('gla', "),
        (dict(mixer=("metala", "s6")), r"mixer: got \('metala', 's6'\), expected one of"),
        (dict(mixer=()), r"mixer: got \(\), expected one of"),
        (dict(mixer=3), "mixer: got 3, expected one of"),
        (dict(mixer="softmax", self_aug=False), r"self_aug: got False, which none of the mixers \('softmax',\) has"),
        (dict(mixer="zeros", scan="cross"), r"scan: got 'cross', which none of the mixers \('zeros',\) has"),
        (dict(mixer=("inline", "retnet"), decay_bias=False), "decay_bias: got False, which none of the mixers"),
        (
            dict(mixer="zeros", decay_scale="none"),
            r"decay_scale: got 'none', but none of the mixers \('zeros',\) has a",
        ),
        (dict(mixer=("metala", "inline"), scan="causal"), "scan: got 'causal', but the mixer 'inline' has no causal"),
    ],
    ids=str,
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("metala_vit_nano", **arguments)


def test_settings_reach_the_mixers_that_have_them():
    model = nano(mixer=("softmax", "metala"), self_aug=False, scan="cross", local_conv=False)
    assert not isinstance(model.blocks[1].mixer.aug_weight, nn.Parameter)
    assert len(model.blocks[1].mixer.scan) == 4
    assert not list(model.blocks[0].mixer.conv.parameters())
    causal = nano(mixer=("softmax", "zeros", "ssd"), scan="causal", depth=3)
    assert all(block.mixer.causal for block in causal.blocks)


def test_a_mixer_of_ones_own():
    """A class with nothing but `dim` and `num_heads`: made on the device and in the dtype of the model all the same."""

    @register_mixer("mean_of_test")
    class Mean(nn.Module):
        def __init__(self, dim: int, num_heads: int):
            super().__init__()
            self.proj = nn.Linear(dim, dim)

        def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
            return self.proj(x.mean(1, keepdim=True)).expand_as(x)

    try:
        model = timm.create_model("metala_vit_nano", mixer=("mean_of_test", "metala"), depth=2, dtype=torch.float64)
        assert model(torch.randn(1, 3, 40, 60).double()).dtype == torch.float64
        assert model.blocks[0].mixer.proj.bias.abs().max() == 0  # initialised as every product of a model
        register_mixer("mean_of_test")(Mean)  # the same again, as when a file is imported twice
        with pytest.raises(ValueError, match="name: got 'mean_of_test', which is .* already"):
            register_mixer("mean_of_test")(MetaLA)
    finally:
        del MIXERS["mean_of_test"]
    with pytest.raises(ValueError, match="name: got 'no name', expected letters"):
        register_mixer("no name")
    for unfit in (lambda width: nn.Identity(), lambda dim, num_heads, **others: nn.Identity()):
        with pytest.raises(ValueError, match="unfit: its constructor takes .*, expected dim, num_heads, and"):
            register_mixer("unfit")(unfit)
    assert "unfit" not in MIXERS


@pytest.mark.parametrize("name", OTHERS)
def test_time_is_linear_in_tokens(name):
    """Catches a map of tokens by tokens: twice the tokens cost twice the multiply-accumulates, but for softmax."""
    model = nano(mixer=name, device="meta")
    counts = []
    for side in (128, 256, 512):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, side, side, device="meta"))
        counts.append(counter.get_total_flops())
    growth = [(counts[2] - counts[1]) / (counts[1] - counts[0])]
    assert (growth[0] == pytest.approx(4, rel=1e-2)) == (name != "softmax"), growth


def test_checkpoint_of_another_mixer_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        nano().load_state_dict(nano(mixer="zeros").state_dict(), strict=False)


def test_features_and_classifier():
    backbone = timm.create_model("metala_vit_nano", features_only=True, mixer=("inline", "zeros"), out_indices=(1, 5))
    assert [tuple(f.shape) for f in backbone(torch.randn(1, 3, 64, 96))] == [(1, 128, 4, 6)] * 2
    model = nano(mixer="normalized")
    model.set_input_size(img_size=96)
    model.reset_classifier(3)
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 3)
    expected = model(torch.randn(1, 3, 96, 96).expand(3, -1, -1, -1))
    assert relative_rms(expected[:1].expand(3, -1), expected.detach()) < CLOSE
