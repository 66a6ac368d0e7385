"""The causal language model: what it sees, what it learns, what it shares."""

import pytest
import torch
from tolerances import FLOAT32, relative_rms

from metala_vision.layers import MIXERS
from metala_vision.models.language import MetaLALanguageModel

CAUSAL = sorted(set(MIXERS) - {"inline"})


@pytest.mark.parametrize("mixer", CAUSAL)
def test_it_sees_the_past_alone(mixer):
    model = MetaLALanguageModel(50, 32, mixer=mixer, max_tokens=40).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    tokens = torch.randint(0, 50, (2, 24))
    changed = tokens.clone()
    changed[:, 15:] = (changed[:, 15:] + 1) % 50
    before, after = model(tokens), model(changed)
    assert before.shape == (2, 24, 50)
    assert relative_rms(after[:, :15], before[:, :15]) < 1e-9
    assert relative_rms(after[:, 15:], before[:, 15:].detach()) > 1e-2
    assert relative_rms(model(tokens[:, :7]), before[:, :7]) < 1e-9


@pytest.mark.parametrize("mixer", [*CAUSAL, ("metala", "softmax")], ids=str)
def test_every_parameter_learns(mixer):
    model = MetaLALanguageModel(50, 32, mixer=mixer, max_tokens=24)
    tokens = torch.randint(0, 50, (2, 24))
    torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


def test_logits_are_products_with_the_embedding():
    """Catches a head of its own, which would have more parameters than all the rest."""
    model = MetaLALanguageModel(1000, 32)
    mixer = 4 * 32 * 32 + 4 * 32 + 32 + 2 * 16  # products, convolution, biases of gate and decay, self-augmentation
    assert sum(p.numel() for p in model.parameters()) == 1000 * 32 + 2 * (mixer + 9 * 32 * 32 + 4 * 32) + 2 * 32
    tokens = torch.randint(0, 1000, (1, 9))
    features = model.forward_features(tokens)
    assert relative_rms(model(tokens), features @ model.embed.weight.T) < FLOAT32


def test_checkpointing_gives_the_same_gradients():
    model, tokens = MetaLALanguageModel(50, 32), torch.randint(0, 50, (2, 24))
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(tokens).square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found))


def test_errors():
    with pytest.raises(ValueError, match="the mixer 'inline' has no causal form"):
        MetaLALanguageModel(50, 32, mixer="inline")
    with pytest.raises(ValueError, match="tokens: got 9 in a sequence, expected at most 8"):
        MetaLALanguageModel(50, 32, max_tokens=8)(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="self_aug: got False, which none of the mixers"):
        MetaLALanguageModel(50, 32, mixer="ssd", self_aug=False)
