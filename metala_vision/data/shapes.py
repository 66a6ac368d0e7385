"""Drawn shapes: discs, rectangles and triangles on a textured ground, with boxes, masks and labels for free."""

from typing import NamedTuple

import cv2
import numpy as np
from mmengine.registry import DATASETS

from metala_vision.errors import InputError

from .base import check_split
from .boxes import BoxDataset, Objects
from .dense_transforms import spanned
from .masks import MaskDataset
from .splits import SPLITS

SHAPES = ("disc", "rectangle", "triangle")
BACKGROUND = "background"
ATTEMPTS = 20
GROUND = 110  # grey value around which the ground varies
CONTRAST = 70  # least distance of a shape's colour from GROUND, in one channel


class Drawing(NamedTuple):
    """An image [size, size, 3] uint8, the visible masks [K, size, size] of its shapes, and their kinds [K] from 0."""

    image: np.ndarray
    masks: np.ndarray
    kinds: np.ndarray


def draw(seed: int, size: int, most: int = 5) -> Drawing:
    """One to `most` shapes of random colour, size and place. Later shapes hide at most a third of an earlier one.

    The same arguments give the same drawing anywhere.
    """
    rng = np.random.default_rng([seed, size])
    ground = rng.integers(0, 256, (max(2, size // 16), max(2, size // 16), 3)).astype(np.float32)
    image = cv2.resize(ground, (size, size), interpolation=cv2.INTER_CUBIC) * 0.25 + GROUND - 32
    masks: list[np.ndarray] = []
    kinds: list[int] = []
    areas: list[int] = []
    wanted = int(rng.integers(1, most + 1))
    for _ in range(ATTEMPTS):
        if len(masks) == wanted:
            break
        kind = int(rng.integers(len(SHAPES)))
        mask = _shape(rng, kind, size)
        left = [np.where(mask > 0, 0, other) for other in masks]
        if mask.sum() < 16 or any(part.sum() < area * 2 / 3 for part, area in zip(left, areas)):
            continue
        masks = [*left, mask]
        kinds.append(kind)
        areas.append(int(mask.sum()))
        image[mask > 0] = _colour(rng)
    image = image + rng.normal(0, 8, image.shape)
    stacked = np.stack(masks).astype(np.uint8) if masks else np.zeros((0, size, size), np.uint8)
    return Drawing(np.clip(image, 0, 255).astype(np.uint8), stacked, np.array(kinds, np.int64))


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A random colour that can be told from the ground."""
    while True:
        colour = rng.integers(0, 256, 3)
        if np.abs(colour - GROUND).max() > CONTRAST:
            return colour


def _shape(rng: np.random.Generator, kind: int, size: int) -> np.ndarray:
    """One shape [size, size] uint8, 0 or 1; a part of it may be outside of the image."""
    mask = np.zeros((size, size), np.uint8)
    centre = rng.uniform(0.15 * size, 0.85 * size, 2)
    radius = rng.uniform(0.1, 0.22) * size
    if SHAPES[kind] == "disc":
        cv2.circle(mask, tuple(int(x) for x in centre), int(radius), 1, -1)
        return mask
    turn = rng.uniform(0, 2 * np.pi)
    if SHAPES[kind] == "triangle":
        angles = turn + np.array([0, 2, 4]) * np.pi / 3
    else:
        half = rng.uniform(0.5, 1.0)  # half the angle between the diagonals: it sets how long the rectangle is
        angles = turn + np.array([-half, half, np.pi - half, np.pi + half])
    corners = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
    return mask


def _seeds(split: str, images: int, size: int, most: int) -> range:
    """Seeds that no other split has."""
    check_split(split)
    for name, value, least in (("images", images, 1), ("size", size, 32), ("most", most, 1)):
        if not isinstance(value, int) or value < least:
            raise InputError(f"{name}: got {value!r}, expected a number of at least {least}")
    start = SPLITS.index(split) * 10**8
    return range(start, start + images)


@DATASETS.register_module()
class ShapesDetection(BoxDataset):
    """Shapes with boxes and masks.

    Args:
        split: "train", "val" or "test"; each has other drawings.
        images: number of images.
        size: side of an image in pixels.
        most: largest number of shapes in an image.
        transform: see `BoxDataset`.

    Raises:
        InputError: a number out of range.
    """

    def __init__(self, split: str, images: int = 500, size: int = 128, most: int = 5, transform: dict | None = None):
        self.drawings = [draw(seed, size, most) for seed in _seeds(split, images, size, most)]
        objects = [
            Objects(spanned(d.masks), 1 + d.kinds, np.zeros(len(d.kinds), bool), tuple(d.masks)) for d in self.drawings
        ]
        super().__init__(split, SHAPES, [f"{split}_{i}" for i in range(images)], objects, transform)

    def load(self, index: int) -> np.ndarray:
        return self.drawings[index].image

    def decode(self, mask: np.ndarray, height: int, width: int) -> np.ndarray:
        return mask


@DATASETS.register_module()
class ShapesSegmentation(MaskDataset):
    """The same drawings with a class for each pixel: background, disc, rectangle or triangle.

    Args:
        split: as for `ShapesDetection`.
        images: as for `ShapesDetection`.
        size: as for `ShapesDetection`.
        most: as for `ShapesDetection`.
        transform: see `MaskDataset`.

    Raises:
        InputError: a number out of range.
    """

    def __init__(self, split: str, images: int = 500, size: int = 128, most: int = 5, transform: dict | None = None):
        self.drawings = [draw(seed, size, most) for seed in _seeds(split, images, size, most)]
        super().__init__(split, (BACKGROUND, *SHAPES), [f"{split}_{i}" for i in range(images)], transform)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        drawing = self.drawings[index]
        labels = np.zeros(drawing.image.shape[:2], np.uint8)
        for mask, kind in zip(drawing.masks, drawing.kinds):
            labels[mask > 0] = 1 + kind
        return drawing.image, labels
