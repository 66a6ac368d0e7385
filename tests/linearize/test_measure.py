"""Neighbours and probe on features whose answers are known."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from metala_vision.linearize.measure import knn, linear_probe, pooled


def model_of(**options) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        embed_dim=24, num_heads=2, depth=1, img_size=16, patch_size=8, num_classes=0, **options
    ).eval()


def test_pooled_features_are_those_of_the_model():
    model, x = model_of(reg_tokens=2), torch.randn(5, 3, 16, 16)
    tokens = model.forward_features(x).detach()
    found = pooled(model, x.split(2))
    assert np.allclose(found["prefix"], tokens[:, 0].numpy(), atol=1e-6)
    assert np.allclose(found["patches"], tokens[:, 3:].mean(1).numpy(), atol=1e-6)
    assert set(pooled(model_of(class_token=False, global_pool="avg"), x.split(2))) == {"patches"}


@pytest.mark.parametrize("score", [knn, linear_probe])
def test_classes_are_told_apart_where_they_can_be(score):
    """All of them where they lie apart, whatever the length of the features; as by chance where labels mean nothing."""
    rng = np.random.default_rng(0)
    directions = np.eye(3, 8)
    labels = rng.integers(3, size=300)
    x = (directions[labels] + 0.1 * rng.standard_normal((300, 8))) * rng.uniform(0.5, 2, (300, 1))
    assert score(x[:200], labels[:200], x[200:], labels[200:]) > 98
    noise = rng.integers(3, size=300)
    assert score(x[:200], noise[:200], x[200:], noise[200:]) < 50
    assert score(x[:5], np.arange(5) % 3, x[:5], np.arange(5) % 3) >= 0
