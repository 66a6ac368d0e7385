"""Features as colours: alike where features are alike, and of the first model's range."""

import numpy as np
import torch

from metala_vision.engine.metrics.feature_plots import plot_features, principal_colours


def test_like_features_have_like_colours(tmp_path):
    torch.manual_seed(0)
    taught = torch.randn(2, 12, 16) @ torch.randn(16, 16)
    near, far = taught + 0.01 * torch.randn_like(taught), torch.randn_like(taught) * 20
    found = principal_colours({"teacher": taught, "near": near, "far": far})
    assert all(colours.shape == (2, 12, 3) and colours.min() >= 0 and colours.max() <= 1 for colours in found.values())
    assert np.abs(found["near"] - found["teacher"]).mean() < 0.01
    assert np.abs(found["far"] - found["teacher"]).mean() > 0.2
    assert found["teacher"].std(axis=(0, 1)).min() > 0.1
    turned = principal_colours({"teacher": -taught})["teacher"]  # a sign decides nothing but which end is bright
    assert np.allclose(np.sort(turned.ravel()), np.sort((1 - found["teacher"]).ravel()), atol=0.2)
    plot_features(
        np.random.default_rng(0).random((2, 24, 32, 3)), {"teacher": taught, "near": near}, (3, 4), tmp_path / "f.png"
    )
    assert (tmp_path / "f.png").stat().st_size > 5000
