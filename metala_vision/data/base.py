"""What every dataset of labelled images shares: samples, failures and batches."""

import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.registry import FUNCTIONS, TRANSFORMS
from torch.utils.data import Dataset

from metala_vision.errors import InputError

from .sampling import SampleKey
from .splits import SPLITS


class UnreadableImageError(Exception):
    """An image that cannot be decoded; the message names the file and the reason."""


class LabelledImages(Dataset):
    """Labelled images of one split. A subclass says where they come from in `load`.

    Args:
        split: "train", "val" or "test".
        classes: names of the classes.
        labels: [N] class of each image.
        transform: an instance, or a config of `mmengine.registry.TRANSFORMS`; None leaves images as they are.

    Raises:
        InputError: unknown split, no images, a class without images, labels outside the classes.
    """

    def __init__(self, split: str, classes: Sequence[str], labels: np.ndarray, transform: dict | None = None):
        check_split(split)
        self.split = split
        self.classes = tuple(classes)
        check_names(self.classes)
        self.labels = np.asarray(labels, dtype=np.int64)
        if len(self.labels) == 0:
            raise InputError(f"{type(self).__name__}: the {split} split has no images")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise InputError(
                f"{type(self).__name__}: labels of the {split} split run from {self.labels.min()} to "
                f"{self.labels.max()}, expected 0 to {len(self.classes) - 1} for {len(self.classes)} classes"
            )
        counts = np.bincount(self.labels, minlength=len(self.classes))
        if split == "train" and (counts == 0).any():
            empty = [self.classes[i] for i in np.flatnonzero(counts == 0)]
            raise InputError(f"{type(self).__name__}: classes without images in the train split: {', '.join(empty)}")
        self.transform = TRANSFORMS.build(transform) if isinstance(transform, dict) else transform

    @property
    def metainfo(self) -> dict:
        """What mmengine keeps of a dataset in checkpoints and metrics."""
        return dict(dataset=type(self).__name__, split=self.split, classes=self.classes)

    def load(self, index: int) -> np.ndarray:
        """The image [height, width, channels], uint8.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | SampleKey) -> dict:
        """dict(image [channels, height, width] uint8, label), or dict(error) for an image that cannot be read."""
        index, seed, img_size = key if isinstance(key, SampleKey) else (key, None, None)
        try:
            image = self.load(index)
        except UnreadableImageError as error:
            return dict(error=str(error))
        if self.transform is not None:
            transform = self.transform if img_size is None else self.transform.at(img_size)
            image = transform(image, seed)
        if image.dtype != np.uint8:
            raise InputError(
                f"transform: it makes images of {image.dtype}, expected uint8; mean and std are the model's business"
            )
        if image.ndim == 2:  # some augmentations drop a single channel
            image = image[:, :, None]
        # A copy of its own: what `load` returns may be the dataset's memory, or read-only.
        return dict(image=torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C")), label=self.labels[index])


def check_names(classes: Sequence[str]) -> None:
    """Raises InputError for a name of a class that no file and no picture could hold: a folder's may be any bytes."""
    for name in classes:
        text = isinstance(name, str) and name.encode(errors="replace").decode() == name
        if not text or len(name.splitlines()) != 1 or any(unicodedata.category(letter) == "Cc" for letter in name):
            raise InputError(f"classes: {name!r} is no text of one line in UTF-8; rename the folder, or the class")


def check_split(split: str) -> None:
    """Raises InputError for anything but "train", "val" and "test"."""
    if split not in SPLITS:
        raise InputError(f"split: got {split!r}, expected one of {SPLITS}")


def check_holdout(holdout: float) -> None:
    """Raises InputError for anything outside [0, 0.5)."""
    if not 0 <= holdout < 0.5:
        raise InputError(f"holdout: got {holdout!r}, expected a number in [0, 0.5)")


@FUNCTIONS.register_module()
def collate_images(samples: Sequence[dict]) -> dict:
    """dict(inputs [B, C, H, W] uint8, labels [B] int64, errors list[str]); unreadable images are left out of B."""
    good = [sample for sample in samples if "error" not in sample]
    shapes = sorted({tuple(sample["image"].shape) for sample in good})
    if len(shapes) > 1:
        raise InputError(f"images of one batch differ in shape, {shapes}: end the transform with a crop or a resize")
    return dict(
        inputs=torch.stack([sample["image"] for sample in good]) if good else torch.empty(0, dtype=torch.uint8),
        labels=torch.tensor([sample["label"] for sample in good], dtype=torch.int64),
        errors=[sample["error"] for sample in samples if "error" in sample],
    )
