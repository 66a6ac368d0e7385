"""How well classes are told apart by features."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

NEIGHBOURS = 20  # as DINO has it (arXiv 2104.14294)


@torch.no_grad()
def pooled(model: Any, batches: Iterable[Tensor]) -> dict[str, np.ndarray]:
    """Features of whole images.

    Args:
        model: a VisionTransformer, in evaluation mode.
        batches: images [B, in_chans, height, width], as the model takes them.

    Returns:
        `patches`: the mean of the final patches [N, C], and `prefix`: the first token before them [N, C], where the
        model has one.
    """
    found: dict[str, list[Tensor]] = {"patches": [], "prefix": []}
    for images in batches:
        tokens = model.forward_features(images).float().cpu()
        before = model.num_prefix_tokens
        found["patches"].append(tokens[:, before:].mean(1))
        if before:
            found["prefix"].append(tokens[:, 0])
    return {name: torch.cat(parts).numpy() for name, parts in found.items() if parts}


def knn(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Percent of test images whose class is that of their nearest training images, by cosine.

    The nearest 20, or all where there are fewer, vote with their likeness as weight.
    """
    from sklearn.neighbors import KNeighborsClassifier

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    voters = KNeighborsClassifier(min(NEIGHBOURS, len(train)), weights=lambda distance: np.exp(-(distance**2) / 0.14))
    return 100 * float(voters.fit(unit(train), train_labels).score(unit(test), test_labels))


def linear_probe(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Percent of test images that logistic regression on standardised features tells right."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    return 100 * float(probe.fit(train, train_labels).score(test, test_labels))
