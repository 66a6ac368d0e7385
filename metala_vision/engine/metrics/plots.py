"""Pictures of a run: curves and confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metala_vision.figures import save_png

from .scores import SCORES

WIDTH = 15.2  # inches of a row of images
LARGE = 480  # pixels of a side, from which an image gets twice the room


def plot_history(records: Sequence[dict], path: str | Path) -> None:
    """Loss, validation and learning rate against the epoch, as PNG. `records` are those of `HistoryHook`."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    series = (
        (("train/loss", "train"), ("val/loss", "validation")),
        tuple((f"val/{key}", score.name + score.unit) for key, score in SCORES.items() if key != "loss"),
        (("lr", "learning rate"),),
    )
    titles = ("loss", "validation", "learning rate")
    for panel, title, lines in zip(panels, titles, series):
        for key, label in lines:
            points = [(record["epoch"], record[key]) for record in records if key in record]
            if points:
                panel.plot(*zip(*points), label=label, marker="." if len(points) < 50 else None)
        panel.set(title=title, xlabel="epoch")
        panel.set_xlim(0.5, records[-1]["epoch"] + 0.5)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.grid(alpha=0.3)
        if len(lines) > 1 and panel.lines:
            panel.legend()
    save_png(figure, path)


def plot_confusion(confusion: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Rows are true classes, columns predictions, colours the share of the row; counts where there is room for them."""
    size = len(classes)
    side = float(np.clip(0.45 * size + 2.5, 5, 16))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    panel = figure.subplots()
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    image = panel.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=panel, shrink=0.8, label="share of the true class")
    accuracy = 100 * np.trace(confusion) / max(confusion.sum(), 1)
    panel.set(xlabel="predicted", ylabel="true", title=f"{accuracy:.2f} percent of {confusion.sum()} images")
    if size <= 30:
        panel.set_xticks(range(size), classes, rotation=90, parse_math=False)
        panel.set_yticks(range(size), classes, parse_math=False)
        for row, column in np.argwhere(confusion):
            colour = "white" if share[row, column] > 0.5 else "black"
            panel.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=8)
    save_png(figure, path)


def plot_images(images: Sequence[np.ndarray], titles: Sequence[str], path: str | Path) -> None:
    """Images [height, width, 1 or 3], floats in [0, 1] or uint8, in a grid with a title each.

    Small ones keep their square pixels; there are eight in a row, or four where they are large.
    """
    side = 1.9 if max(max(image.shape) for image in images) < LARGE else 3.8
    columns = min(len(images), round(WIDTH / side))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(side * columns, (side + 0.3) * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, image, title in zip(panels, images, titles):
        image = image if image.dtype == np.uint8 else np.clip(image, 0, 1)
        top = 255 if image.dtype == np.uint8 else 1
        panel.imshow(image, cmap="gray" if image.shape[2] == 1 else None, vmin=0, vmax=top, interpolation="nearest")
        panel.set_title(title, fontsize=8, parse_math=False)
    save_png(figure, path)
