"""Objects and classes drawn into images, enlarged where these are small."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch.nn import functional
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from .lettering import write_beside
from .masks import IGNORE

LEAST_SIDE = 480  # pixels of a picture's longer side, so that the text in it can be read
EDGE = 2  # pixels of a mask's edge


def objects_on(image: torch.Tensor, target: dict, classes: Sequence[str]) -> torch.Tensor:
    """[3, height, width] uint8: an image with its true objects, enlarged where it is small."""
    labels = target["labels"].tolist()
    masks = target["masks"].cpu().numpy() if "masks" in target and len(labels) else None
    return drawn(image, target["boxes"].cpu().numpy(), labels, [classes[label - 1] for label in labels], masks)


def found_on(image: torch.Tensor, found: dict, classes: Sequence[str], min_score: float) -> torch.Tensor:
    """[3, height, width] uint8: an image with the objects found in it, enlarged where it is small.

    Args:
        image: [1 or 3, height, width] uint8.
        found: boxes, labels from 1, scores and, for some detectors, masks, as lists or arrays.
        classes: names of the labels from 1.
        min_score: least score of an object that is drawn.
    """
    chosen = [i for i, score in enumerate(found["scores"]) if score >= min_score]
    return drawn(
        image,
        np.array([found["boxes"][i] for i in chosen], np.float32).reshape(-1, 4),
        [found["labels"][i] for i in chosen],
        [f"{classes[found['labels'][i] - 1]} {found['scores'][i]:.2f}" for i in chosen],
        np.array(found["masks"])[chosen] if len(chosen) and found.get("masks") is not None else None,
    )


def classes_on(image: torch.Tensor, labels: np.ndarray, classes: int) -> torch.Tensor:
    """[3, height, width] uint8: an image with classes laid over it, enlarged where it is small."""
    image = enlarged(rgb(image))
    shown = _nearest(labels, image)
    present = [label for label in range(classes) if label != IGNORE and (shown == label).any()]
    if not present:
        return image
    for label in present:
        image = _tinted(image, shown == label, class_colour(label), 0.5)
    return image


def rgb(image: torch.Tensor) -> torch.Tensor:
    """[1 or 3, height, width] -> [3, height, width]."""
    return image.expand(3, -1, -1) if image.shape[0] == 1 else image


def _scale(image: torch.Tensor) -> float:
    return max(1.0, LEAST_SIDE / max(image.shape[-2:]))


def enlarged(image: torch.Tensor) -> torch.Tensor:
    """[3, height, width] uint8, with at least `LEAST_SIDE` pixels on the longer side."""
    height, width = (round(side * _scale(image)) for side in image.shape[-2:])
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _nearest(labels: np.ndarray, image: torch.Tensor) -> torch.Tensor:
    """Labels resized to the size of the image, by nearest neighbour."""
    height, width = image.shape[-2:]
    return torch.from_numpy(np.array(Image.fromarray(labels.astype(np.uint8)).resize((width, height), 0)))


def _tinted(image: torch.Tensor, mask: torch.Tensor, colour: tuple[int, int, int], alpha: float) -> torch.Tensor:
    """An image with a mask over it. Its edge has the unmixed colour, since a tint of a coloured thing says little."""
    inner = -functional.max_pool2d(-mask[None].float(), 1 + 2 * EDGE, stride=1, padding=EDGE)[0]
    tinted = draw_segmentation_masks(image, mask, alpha=alpha, colors=[colour])
    return draw_segmentation_masks(tinted, mask & (inner == 0), alpha=1.0, colors=[colour])


def class_colour(label: int) -> tuple[int, int, int]:
    """Red, green and blue of a class; twenty differ."""
    red, green, blue, _ = colormaps["tab20"](((label * 2) % 20 + label // 10 % 2) / 20 + 0.025)
    return int(255 * red), int(255 * green), int(255 * blue)


def drawn(
    image: torch.Tensor, boxes: np.ndarray, labels: list[int], texts: list[str], masks: np.ndarray | None
) -> torch.Tensor:
    """An image, enlarged where it is small, with boxes [K, 4] in its pixels and masks [K, height, width].

    The first of the boxes find their texts a place first.
    """
    scale = _scale(image)
    picture = enlarged(rgb(image))
    colours = [class_colour(label) for label in labels]
    for mask, colour in zip([] if masks is None else masks, colours):  # together, overlaps would be black
        picture = _tinted(picture, _nearest(mask, picture) > 0, colour, 0.35)
    if len(boxes) == 0:
        return picture
    spans = boxes * scale
    picture = draw_bounding_boxes(picture, torch.from_numpy(spans), colors=colours, width=2)
    written = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    write_beside(written, spans, texts, colours)
    return torch.from_numpy(np.array(written)).permute(2, 0, 1)
