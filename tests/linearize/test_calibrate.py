"""A linear model from a softmax one: states that are made from the teacher's keys."""

import sys

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from metala_vision.layers.linearized import FORMS
from metala_vision.linearize import calibrate, linearize


def teacher_with_clusters() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(embed_dim=32, num_heads=2, depth=3, img_size=48, patch_size=8, num_classes=0).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("qkv.weight"):
                p.copy_(0.35 * torch.randn_like(p))
    return model


def images(count: int) -> Tensor:
    """Patches of a few kinds with noise, so that there are classes to be found."""
    kinds = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    chosen = kinds[torch.randint(5, (count, 6, 6))] + 0.2 * torch.randn(count, 6, 6, 3, 8, 8)
    return chosen.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, 48, 48)


def distance(model, teacher, x: Tensor) -> float:
    with torch.no_grad():
        wanted = teacher.forward_features(x)
        return ((model.forward_features(x) - wanted).norm() / (wanted - wanted.mean(1, keepdim=True)).norm()).item()


@pytest.mark.parametrize("mixer", FORMS)
def test_states_from_images_bring_the_features_near(mixer):
    """Nearer than random states; and with many classes as near as one likes, since they are softmax attention then."""
    teacher = teacher_with_clusters()
    x = images(8)
    model = linearize(teacher, mixer, states=24).eval()
    before = distance(model, teacher, x)
    calibrate(model, teacher, images(32).split(16))
    after = distance(model, teacher, x)
    assert after < {"classes": 0.4, "kernel": 0.8, "metala": 0.95}[mixer] * before
    assert after < {"classes": 0.25, "kernel": 0.6, "metala": 0.7}[mixer]


def test_a_seed_gives_the_same_states():
    teacher = teacher_with_clusters()
    x = images(16)
    models = [linearize(teacher, "classes", states=8, keep_softmax=(1,)) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1)):
        calibrate(model, teacher, [x], seed)
    weights = [model.blocks[2].attn.form.key_weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not teacher.blocks[0].attn._forward_pre_hooks


def test_of_many_images_as_many_keys_are_kept(monkeypatch):
    """Catches keys of every batch in memory, and a choice that leaves out the last batches."""
    seen = []

    class Found:
        inertia_ = 1.0

        def __init__(self, count, **options):
            self.count = count

        def fit(self, keys):
            seen.append(keys)
            self.cluster_centers_ = keys[: self.count]
            return self

    monkeypatch.setattr("sklearn.cluster.KMeans", Found)
    monkeypatch.setattr(sys.modules["metala_vision.linearize.calibrate"], "KEYS", 3)  # a function has its name
    teacher = teacher_with_clusters()
    batches = [torch.full((2, 3, 48, 48), float(i)) + 0.1 * images(2) for i in range(40)]
    calibrate(linearize(teacher, "classes", states=8), teacher, batches)
    assert {len(keys) for keys in seen} == {24}
    with torch.no_grad():
        tokens = [teacher.blocks[0].norm1(teacher._pos_embed(teacher.patch_embed(x))) for x in batches]
        attn, width = teacher.blocks[0].attn, teacher.embed_dim
        keys = [attn.qkv(x)[..., width : width + width // attn.num_heads] for x in tokens]
    where = [min(range(40), key=lambda i: (keys[i] - torch.from_numpy(key)).square().sum(-1).min()) for key in seen[0]]
    assert len(set(where)) > 8
    assert max(where) > 25


def test_too_few_images():
    teacher = teacher_with_clusters()
    with pytest.raises(ValueError, match="batches: got none, expected images"):
        calibrate(linearize(teacher), teacher, [])
    with pytest.raises(ValueError, match="batches: got 36 patches, expected 64 or more"):
        calibrate(linearize(teacher), teacher, [images(1)])
