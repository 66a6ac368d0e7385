"""Images without labels: every file of a folder, however it is laid out."""

import logging
from pathlib import Path

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from metala_vision.errors import InputError

from .base import LabelledImages, check_holdout, check_split
from .folder_index import all_images
from .image_folder import read_image
from .packed import PackedStrings
from .splits import held_out


@DATASETS.register_module()
class Photographs(LabelledImages):
    """All images under `root`, of any depth, of one class: what is learned from a teacher needs no other.

    Val and test are the same share of them, which training does not see.

    Args:
        root: the folder.
        split: "train", "val" or "test".
        transform: see `LabelledImages`.
        holdout: share of the images that is val and test.
        channels: 3 for RGB, 1 for grey; every image is converted.
        cache: remember the list of files, as `ImageFolder` does.
        orientation: as for `ImageFolder`.

    Raises:
        InputError: a missing folder, or fewer than two images in it.
    """

    named = False  # its class is not to be told from others

    def __init__(
        self,
        root: str,
        split: str,
        transform: dict | None = None,
        holdout: float = 0.05,
        channels: int = 3,
        cache: bool = True,
        orientation: bool = True,
    ):
        check_split(split)
        check_holdout(holdout)
        if channels not in (1, 3):
            raise InputError(f"channels: got {channels!r}, expected 3 (RGB) or 1 (grey)")
        if holdout == 0:
            raise InputError("holdout: got 0, expected above 0: there is no other test split")
        folder = Path(root)
        if not folder.is_dir():
            raise InputError(f"--data-root (root): no folder {folder}; expected one with images in it, at any depth")
        paths = all_images(folder, cache)
        if len(paths) < 2:
            raise InputError(f"--data-root (root): {folder} has {len(paths)} images, expected 2 or more")
        chosen = held_out(len(paths), split, holdout)
        print_log(
            f"{folder}: the {split} split is {len(chosen)} of its {len(paths)} images",
            logger="current",
            level=logging.INFO,
        )
        self.channels, self.orientation = channels, orientation
        self.paths = PackedStrings([paths[i] for i in chosen])
        super().__init__(split, ("photograph",), np.zeros(len(chosen)), transform)

    def load(self, index: int) -> np.ndarray:
        return read_image(self.paths[index], self.channels, self.orientation)
