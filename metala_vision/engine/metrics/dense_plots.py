"""Pictures of what detectors and segmenters find, beside the ground truth."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from PIL import Image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from metala_vision.data.masks import IGNORE

FONT = findfont("DejaVu Sans")  # matplotlib brings it along
LEAST_SIDE = 480  # pixels of a picture's longer side, so that the text in it can be read


def draw_objects(sample: dict, found: dict, classes: Sequence[str], min_score: float) -> bytes:
    """PNG of an image twice: with the objects found at `min_score` or better, and with the true ones.

    Args:
        sample: a sample of a `BoxDataset`.
        found: boxes, labels, scores and, for some detectors, masks, as lists or arrays.
        classes: names of the labels from 1.
        min_score: least score of an object that is drawn.
    """
    chosen = [i for i, score in enumerate(found["scores"]) if score >= min_score]
    left = _drawn(
        sample["image"],
        np.array([found["boxes"][i] for i in chosen], np.float32).reshape(-1, 4),
        [found["labels"][i] for i in chosen],
        [f"{classes[found['labels'][i] - 1]} {found['scores'][i]:.2f}" for i in chosen],
        np.array(found["masks"])[chosen] if len(chosen) and found.get("masks") is not None else None,
    )
    return _png(_beside(left, objects_on(sample["image"], sample["target"], classes)))


def objects_on(image: torch.Tensor, target: dict, classes: Sequence[str]) -> torch.Tensor:
    """[3, height, width] uint8: an image with its true objects, enlarged where it is small."""
    labels = target["labels"].tolist()
    masks = target["masks"].cpu().numpy() if "masks" in target and len(labels) else None
    return _drawn(image, target["boxes"].cpu().numpy(), labels, [classes[label - 1] for label in labels], masks)


def draw_classes(sample: dict, found: np.ndarray, classes: Sequence[str]) -> bytes:
    """PNG of an image three times: with the classes found laid over it, with the true ones, and alone.

    Ignored pixels stay as they are in the image.

    Args:
        sample: a sample of a `MaskDataset`.
        found: [height, width] classes.
        classes: their names.
    """
    parts = [classes_on(sample["image"], labels, len(classes)) for labels in (found, sample["mask"].numpy())]
    return _png(_beside(*parts, _enlarged(_rgb(sample["image"]))))


def classes_on(image: torch.Tensor, labels: np.ndarray, classes: int) -> torch.Tensor:
    """[3, height, width] uint8: an image with classes laid over it, enlarged where it is small."""
    image = _enlarged(_rgb(image))
    enlarged = _nearest(labels, image)
    present = [label for label in range(classes) if label != IGNORE and (enlarged == label).any()]
    if not present:
        return image
    masks = torch.stack([enlarged == label for label in present])
    return draw_segmentation_masks(image, masks, alpha=0.55, colors=[_colour(label) for label in present])


def _rgb(image: torch.Tensor) -> torch.Tensor:
    return image.expand(3, -1, -1) if image.shape[0] == 1 else image


def _scale(image: torch.Tensor) -> float:
    return max(1.0, LEAST_SIDE / max(image.shape[-2:]))


def _enlarged(image: torch.Tensor) -> torch.Tensor:
    height, width = (round(side * _scale(image)) for side in image.shape[-2:])
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _nearest(labels: np.ndarray, image: torch.Tensor) -> torch.Tensor:
    """Labels resized to the size of the image, by nearest neighbour."""
    height, width = image.shape[-2:]
    return torch.from_numpy(np.array(Image.fromarray(labels.astype(np.uint8)).resize((width, height), 0)))


def _colour(label: int) -> tuple[int, int, int]:
    red, green, blue, _ = colormaps["tab20"](((label * 2) % 20 + label // 10 % 2) / 20 + 0.025)
    return int(255 * red), int(255 * green), int(255 * blue)


def _drawn(
    image: torch.Tensor, boxes: np.ndarray, labels: list[int], texts: list[str], masks: np.ndarray | None
) -> torch.Tensor:
    scale = _scale(image)
    picture = _enlarged(_rgb(image))
    colours = [_colour(label) for label in labels]
    for mask, colour in zip([] if masks is None else masks, colours):  # together, overlaps would be black
        picture = draw_segmentation_masks(picture, _nearest(mask, picture) > 0, alpha=0.35, colors=[colour])
    if len(boxes) == 0:
        return picture
    return draw_bounding_boxes(
        picture, torch.from_numpy(boxes) * scale, texts, colours, width=2, font=FONT, font_size=12, fill_labels=True
    )


def _beside(*pictures: torch.Tensor) -> torch.Tensor:
    gap = torch.full((3, pictures[0].shape[1], 8), 255, dtype=torch.uint8)
    parts = [part for picture in pictures for part in (picture, gap)]
    return torch.cat(parts[:-1], 2)


def _png(picture: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()
