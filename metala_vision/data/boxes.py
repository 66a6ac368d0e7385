"""What every dataset of boxes shares: samples, checked annotations and batches."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.registry import FUNCTIONS, TRANSFORMS
from torch.utils.data import Dataset

from metala_vision.errors import InputError

from .base import UnreadableImageError, check_names, check_split
from .plausibility import Fit, check_fit, in_corner
from .sampling import SampleKey

MAX_MISFIT = 0.2
LISTED = 5  # files that the log names for each kind of fault


class Objects(NamedTuple):
    """The K objects of one image; boxes are left, top, right, bottom in pixels."""

    boxes: np.ndarray  # [K, 4] float32
    labels: np.ndarray  # [K] int64, 1 to the number of classes
    crowd: np.ndarray  # [K] bool: crowds and difficult objects, neither trained on nor counted against a detector
    masks: tuple[Any, ...] | None = None  # K masks as `BoxDataset.decode` takes them; None if there are none
    areas: np.ndarray | None = None  # [K] float32, in pixels, as the dataset states them; None if it states none

    def only(self, keep: np.ndarray) -> "Objects":
        """The objects with these indices."""
        masks = None if self.masks is None else tuple(self.masks[i] for i in keep)
        areas = None if self.areas is None else self.areas[keep]
        return Objects(self.boxes[keep], self.labels[keep], self.crowd[keep], masks, areas)


class Troubles:
    """Counts the faults found in annotations, by kind, and how many boxes fit; `log` reports the faults."""

    def __init__(self):
        self.files: dict[str, list[str]] = {}
        self.fit = Fit()

    def add(self, kind: str, file: str) -> None:
        """Counts one more fault of a kind, found in a file."""
        self.files.setdefault(kind, []).append(file)

    def counts(self) -> dict[str, int]:
        """Number of faults of each kind."""
        return {kind: len(files) for kind, files in self.files.items()}

    def log(self, where: str) -> None:
        """Logs a line for each kind, with the number of faults and the first files."""
        for kind, files in self.files.items():
            named = Counter(files)
            some = [f"{file} ({count})" if count > 1 else file for file, count in list(named.items())[:LISTED]]
            more = f", and {len(named) - LISTED} more files" if len(named) > LISTED else ""
            print_log(f"{where}: {len(files)} {kind}: {', '.join(some)}{more}", logger="current", level=logging.WARNING)


class BoxDataset(Dataset):
    """Images with boxes, and with masks where the dataset has them. A subclass reads an image in `load`.

    Args:
        split: "train", "val" or "test".
        classes: names of the classes; labels begin with 1.
        names: name of each image.
        objects: the objects of each image.
        transform: a `BoxTransform`, or its config; None leaves images as they are.
        troubles: faults that were found while the annotations were read.
        max_misfit: share of the boxes that may be dropped or clipped, since they do not fit their image.

    Raises:
        InputError: an unknown split, no images, no object in any of them, too many boxes that do not fit.
    """

    def __init__(
        self,
        split: str,
        classes: Sequence[str],
        names: Sequence[str],
        objects: Sequence[Objects],
        transform: dict | None = None,
        troubles: Troubles | None = None,
        max_misfit: float = MAX_MISFIT,
    ):
        check_split(split)
        self.split = split
        self.classes = tuple(classes)
        check_names(self.classes)
        self.names = tuple(names)
        self.objects = list(objects)
        self.troubles = troubles or Troubles()
        where = f"{type(self).__name__} ({split})"
        if not self.objects:
            raise InputError(f"{where}: no images")
        check_fit(where, self.troubles.fit, max_misfit)
        empty = sum(len(found.boxes) == 0 for found in self.objects)
        if empty == len(self.objects):
            purpose = "learn from" if split == "train" else "measure"
            faults = ", ".join(f"{count} {kind}" for kind, count in self.troubles.counts().items())
            raise InputError(
                f"{where}: none of its {empty} images has an object, so there is nothing to {purpose}"
                f"{f'; in its annotations: {faults}' if faults else ''}"
            )
        if empty:
            print_log(
                f"{where}: {empty} of {len(self.objects)} images have no object", logger="current", level=logging.INFO
            )
        self.troubles.log(where)
        self.transform = TRANSFORMS.build(transform) if isinstance(transform, dict) else transform

    @property
    def metainfo(self) -> dict:
        """What mmengine keeps of a dataset in checkpoints and metrics."""
        return dict(dataset=type(self).__name__, split=self.split, classes=self.classes)

    @property
    def has_masks(self) -> bool:
        """Whether its objects have masks."""
        return all(found.masks is not None for found in self.objects)

    def load(self, index: int) -> np.ndarray:
        """The image [height, width, channels], uint8.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        raise NotImplementedError

    def decode(self, mask: Any, height: int, width: int) -> np.ndarray:
        """One of `Objects.masks` as [height, width] uint8, 0 or 1."""
        raise NotImplementedError

    def image_id(self, index: int) -> int:
        """The id of an image in result files."""
        return index

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, key: int | SampleKey) -> dict:
        """dict(image [channels, height, width] uint8, target), or dict(error) for an image that cannot be read.

        The target has boxes [K, 4] float32, labels [K] int64, iscrowd [K] bool, image_id, index and size (height,
        width). Where the dataset has them, it also has area [K] float32, in pixels as the dataset states it, and masks
        [K, height, width] uint8. The train split leaves crowds out.
        """
        index, seed = key[:2] if isinstance(key, SampleKey) else (key, None)
        try:
            image = self.load(index)
        except UnreadableImageError as error:
            return dict(error=str(error))
        height, width = image.shape[:2]
        found = self.objects[index]
        if self.split == "train":
            found = found.only(np.flatnonzero(~found.crowd))
        boxes = np.clip(found.boxes, 0, [width, height, width, height]).astype(np.float32)
        masks = None
        if found.masks is not None:
            masks = np.stack([self.decode(mask, height, width) for mask in found.masks]) if len(boxes) else None
            masks = np.zeros((0, height, width), np.uint8) if masks is None else masks
        keep = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= 1e-3).all(1))  # clipping leaves nothing of some boxes
        if self.transform is not None:
            image, boxes, masks, kept = self.transform(image, boxes[keep], None if masks is None else masks[keep], seed)
            keep = keep[kept]
        else:
            boxes, masks = boxes[keep], None if masks is None else masks[keep]
        target = dict(
            boxes=torch.from_numpy(np.ascontiguousarray(boxes, np.float32)).reshape(-1, 4),
            labels=torch.from_numpy(found.labels[keep]),
            iscrowd=torch.from_numpy(found.crowd[keep]),
            image_id=self.image_id(index),
            index=index,
            size=tuple(image.shape[:2]),
        )
        if found.areas is not None:
            target["area"] = torch.from_numpy(found.areas[keep])
        if masks is not None:
            target["masks"] = torch.from_numpy(np.ascontiguousarray(masks, np.uint8))
        return dict(image=torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C")), target=target)


def sound_boxes(boxes: np.ndarray, size: tuple[int, int] | None, file: str, troubles: Troubles) -> np.ndarray:
    """Indices of the boxes that cover a part of the image; faults are counted in `troubles`.

    Args:
        boxes: [K, 4] left, top, right, bottom.
        size: height and width of the image, None where they are unknown.
        file: name of the file, for messages.
        troubles: where faults are counted.
    """
    keep, clipped = [], 0
    for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
        if not np.isfinite([left, top, right, bottom]).all() or right <= left or bottom <= top:
            troubles.add("degenerate boxes dropped", file)
            continue
        if size is not None:
            height, width = size
            if left >= width or top >= height or right <= 0 or bottom <= 0:
                troubles.add("boxes outside of their image dropped", file)
                continue
            if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
                troubles.add("boxes clipped to their image", file)
                clipped += 1
        keep.append(i)
    troubles.fit += Fit(len(boxes), len(boxes) - len(keep), clipped, in_corner(boxes))
    return np.array(keep, dtype=np.int64)


@FUNCTIONS.register_module()
def collate_boxes(samples: Sequence[dict]) -> dict:
    """dict(inputs: list of [C, H, W] uint8, targets: list of dict, errors); unreadable images are left out."""
    good = [sample for sample in samples if "error" not in sample]
    return dict(
        inputs=[sample["image"] for sample in good],
        targets=[sample["target"] for sample in good],
        errors=[sample["error"] for sample in samples if "error" in sample],
    )
