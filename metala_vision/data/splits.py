"""Disjoint, reproducible splits of labelled data."""

import numpy as np

SPLITS = ("train", "val", "test")


def stratified_split(labels: np.ndarray, fractions: tuple[float, ...], seed: int = 0) -> list[np.ndarray]:
    """Index sets that share no index, each with the class proportions of the whole.

    Args:
        labels: [N] integer classes.
        fractions: share of each set; what they leave over goes to the last set.
        seed: of the one shuffle per class. The same labels and seed give the same sets anywhere.

    Returns:
        One sorted index array per fraction.
    """
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    cuts = np.cumsum(fractions)[:-1]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        for part, chosen in zip(parts, np.split(members, np.round(cuts * len(members)).astype(int))):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in parts]


def held_out(count: int, split: str, share: float, seed: int = 0) -> np.ndarray:
    """Sorted indices of a split of `count` things: "val" and "test" are the same share of them, "train" is the rest."""
    order = np.random.default_rng(seed).permutation(count)
    cut = max(1, round(share * count)) if share > 0 and count > 1 else 0
    return np.sort(order[cut:] if split == "train" else order[:cut])


def stratified_subset(labels: np.ndarray, size: int, seed: int = 0) -> np.ndarray:
    """Sorted indices of about `size` samples with the class proportions of the whole."""
    return stratified_split(labels, (size / len(labels), 1 - size / len(labels)), seed)[0]
