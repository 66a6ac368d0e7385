"""Tells boxes that fit their pictures from boxes of another form, from which a detector would learn nothing."""

from typing import NamedTuple

import numpy as np

from metala_vision.errors import InputError

FEWEST = 10  # boxes that do not fit: fewer are single mistakes, however few boxes there are
CORNER = 1.5  # pixels: boxes as shares of the picture lie within the corner of this side


class Fit(NamedTuple):
    """How many boxes there are, and how many of them do not fit their picture."""

    boxes: int = 0
    dropped: int = 0  # they enclose nothing, or lie outside
    clipped: int = 0
    corner: int = 0

    def __add__(self, other: tuple) -> "Fit":
        return Fit(*(a + b for a, b in zip(self, other)))


def in_corner(boxes: np.ndarray) -> int:
    """How many of the boxes [K, 4] (left, top, right, bottom) lie within the first pixel or so of their picture."""
    return int((np.abs(boxes) <= CORNER).all(1).sum())


def check_fit(where: str, fit: Fit, max_misfit: float) -> None:
    """Checks that most boxes fit their pictures.

    Args:
        where: the dataset and its split, for messages.
        fit: of all its boxes.
        max_misfit: share of the boxes that may be dropped or clipped.

    Raises:
        InputError: more do not fit, or they look like shares of the picture; the message names the usual causes.
    """
    if fit.corner > max(FEWEST, fit.boxes / 2):
        raise InputError(
            f"{where}: {fit.corner} of {fit.boxes} boxes lie within one pixel of the upper left corner; they look like "
            f"shares of the picture, and pixels are expected: multiply them by width and height"
        )
    if fit.dropped + fit.clipped > max(FEWEST, max_misfit * fit.boxes):
        raise InputError(
            f"{where}: {fit.dropped + fit.clipped} of {fit.boxes} boxes do not fit their pictures ({fit.dropped} "
            f"enclose nothing or lie outside, {fit.clipped} reach beyond the border), more than "
            f"max_misfit={max_misfit:g}. Usual causes: two corners where COCO's form has x, y, width and height; "
            f"pictures that were resized after they were annotated; boxes of turned pictures (see orientation). "
            f"To see them, give tools/browse_dataset.py --cfg-options "
            f"with max_misfit=1 for train_dataloader.dataset, val_dataloader.dataset and test_dataloader.dataset"
        )
