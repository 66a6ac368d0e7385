"""Augmentation of images together with their boxes and masks, on albumentations."""

import warnings
from collections.abc import Sequence

import albumentations as A
import numpy as np
from mmengine.registry import TRANSFORMS

from metala_vision.errors import InputError

from .transforms import build_albumentation, reseed


@TRANSFORMS.register_module()
class BoxTransform:
    """A list of albumentations for images with boxes, and masks where there are some.

    Objects of which too little remains in the image are dropped. Where there are masks, every box is the bounding box
    of its mask.

    Args:
        transforms: dicts such as dict(type="HorizontalFlip", p=0.5).
        min_visibility: share of a box's area that must stay in the image.

    Raises:
        InputError: an unknown transform, or an argument it does not take or that has the wrong type or range.
    """

    def __init__(self, transforms: Sequence[dict], min_visibility: float = 0.1):
        if not 0 <= min_visibility <= 1:
            raise InputError(f"min_visibility: got {min_visibility!r}, expected a number in [0, 1]")
        boxes = A.BboxParams(
            format="pascal_voc", label_fields=["indices"], min_area=1.0, min_visibility=min_visibility, clip=True
        )
        self.compose = A.Compose([build_albumentation(dict(t)) for t in transforms], bbox_params=boxes)

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, masks: np.ndarray | None, seed: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
        """Image [height, width, channels] uint8, boxes [K, 4], masks [K, height, width] -> the same of the new image,
        and the indices of the objects that remain. The same `seed` gives the same result.
        """
        if seed is not None:
            reseed(self.compose, seed)
        inputs = dict(image=image, bboxes=boxes, indices=np.arange(len(boxes)))
        if masks is not None and len(masks):
            inputs["masks"] = masks
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got processor for bboxes, but no transform to process it")
            result = self.compose(**inputs)
        image, kept = result["image"], np.asarray(result["indices"], np.int64).reshape(-1)
        boxes = np.asarray(result["bboxes"], np.float32).reshape(-1, 4)
        if masks is None:
            return image, boxes, None, kept
        if len(kept) == 0:
            return image, boxes, np.zeros((0, *image.shape[:2]), np.uint8), kept
        masks = np.asarray(result["masks"])[kept]
        seen = np.flatnonzero(masks.any((1, 2)))
        return image, spanned(masks[seen]), masks[seen], kept[seen]


@TRANSFORMS.register_module()
class MaskTransform:
    """A list of albumentations for images with a class for each pixel.

    Pixels from outside of the image should be ignored: give fill_mask=255 to transforms that pad, rotate or shift.

    Args:
        transforms: as for `BoxTransform`.

    Raises:
        InputError: as for `BoxTransform`.
    """

    def __init__(self, transforms: Sequence[dict]):
        self.compose = A.Compose([build_albumentation(dict(t)) for t in transforms])

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """[height, width, channels] uint8 and [height, width] -> the same of the new image."""
        if seed is not None:
            reseed(self.compose, seed)
        result = self.compose(image=image, mask=mask)
        return result["image"], result["mask"]


def spanned(masks: np.ndarray) -> np.ndarray:
    """Bounding boxes [K, 4] float32 of masks [K, height, width], none of which may be empty."""
    columns, rows = np.any(masks, 1), np.any(masks, 2)
    left, top = columns.argmax(1), rows.argmax(1)
    right = masks.shape[2] - columns[:, ::-1].argmax(1)
    bottom = masks.shape[1] - rows[:, ::-1].argmax(1)
    return np.stack([left, top, right, bottom], 1).astype(np.float32)
