"""Features of patches as colours: what two models see alike has like colours."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from metala_vision.figures import save_png


def plot_features(images: np.ndarray, features: Mapping[str, Tensor], grid: tuple[int, int], path: str | Path) -> None:
    """A row for each picture: the picture, and its features by each model, the first three principal parts as colours.

    The parts, and the range of the colours, are those of the first model, over all pictures.

    Args:
        images: [B, height, width, 3], in [0, 1].
        features: final patches [B, N, C] by the name of the model.
        grid: rows and columns of the patches.
        path: of the PNG.
    """
    colours = {name: part.reshape(len(images), *grid, 3) for name, part in principal_colours(features).items()}
    height = 2.1 * images.shape[1] / images.shape[2]
    figure = Figure(figsize=(2.1 * (1 + len(colours)), height * len(images) + 0.3), layout="constrained")
    panels = figure.subplots(len(images), 1 + len(colours), squeeze=False)
    for row, (image, line) in enumerate(zip(images, panels)):
        for panel, (name, shown) in zip(line, [("picture", image), *((n, c[row]) for n, c in colours.items())]):
            panel.imshow(np.clip(shown, 0, 1), interpolation="nearest")
            panel.set_axis_off()
            if row == 0:
                panel.set_title(name, fontsize=9)
    save_png(figure, path, dpi=110)


def principal_colours(features: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Features [B, N, C] of several models -> colours [B, N, 3] in [0, 1], see `plot_features`."""
    first = next(iter(features.values())).double().flatten(0, 1)
    mean = first.mean(0)
    _, _, directions = torch.linalg.svd(first - mean, full_matrices=False)
    basis = directions[:3].T
    basis = basis * basis.sum(0).sign()  # or a colour and its opposite would be as likely
    shown = (first - mean) @ basis
    low, high = (torch.quantile(shown, share, dim=0) for share in (0.02, 0.98))
    return {
        name: (((part.double() - mean) @ basis - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).numpy()
        for name, part in features.items()
    }
