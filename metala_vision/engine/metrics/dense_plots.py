"""Pictures of what detectors and segmenters find, beside the ground truth."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from metala_vision.data.drawing import classes_on, enlarged, found_on, objects_on, rgb


def draw_objects(sample: dict, found: dict, classes: Sequence[str], min_score: float) -> bytes:
    """PNG of an image twice: with the objects found at `min_score` or better, and with the true ones.

    Args:
        sample: a sample of a `BoxDataset`.
        found: boxes, labels, scores and, for some detectors, masks, as lists or arrays.
        classes: names of the labels from 1.
        min_score: least score of an object that is drawn.
    """
    left = found_on(sample["image"], found, classes, min_score)
    return _png(_beside(left, objects_on(sample["image"], sample["target"], classes)))


def draw_classes(sample: dict, found: np.ndarray, classes: Sequence[str]) -> bytes:
    """PNG of an image three times: with the classes found laid over it, with the true ones, and alone.

    Ignored pixels stay as they are in the image.

    Args:
        sample: a sample of a `MaskDataset`.
        found: [height, width] classes.
        classes: their names.
    """
    parts = [classes_on(sample["image"], labels, len(classes)) for labels in (found, sample["mask"].numpy())]
    return _png(_beside(*parts, enlarged(rgb(sample["image"]))))


def _beside(*pictures: torch.Tensor) -> torch.Tensor:
    gap = torch.full((3, pictures[0].shape[1], 8), 255, dtype=torch.uint8)
    parts = [part for picture in pictures for part in (picture, gap)]
    return torch.cat(parts[:-1], 2)


def _png(picture: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()
