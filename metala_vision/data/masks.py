"""Images with a class for each pixel, from folders of images and of masks."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.registry import DATASETS, FUNCTIONS, TRANSFORMS
from torch.utils.data import Dataset

from metala_vision.errors import InputError

from .base import UnreadableImageError, check_holdout, check_names, check_split
from .boxes import Troubles
from .image_folder import SUFFIXES, read_image
from .orientation import Size, opened
from .sampling import SampleKey
from .sizes import check_sizes
from .splits import SPLITS, held_out

IGNORE = 255  # the label of pixels that neither loss nor metrics count


class MaskDataset(Dataset):
    """Images with masks. A subclass reads both in `load`.

    Args:
        split: "train", "val" or "test".
        classes: names of the classes; labels begin with 0.
        names: what each image is called in messages.
        transform: a `MaskTransform`, or its config; None leaves images as they are.

    Attributes:
        named: False where the classes are mere numbers, which cannot be compared with the names of other classes.

    Raises:
        InputError: an unknown split, no images, more than 255 classes.
    """

    named = True

    def __init__(self, split: str, classes: Sequence[str], names: Sequence[str], transform: dict | None = None):
        check_split(split)
        self.split = split
        self.classes = tuple(classes)
        check_names(self.classes)
        if len(self.classes) > IGNORE:
            raise InputError(
                f"classes: got {len(self.classes)}, expected at most {IGNORE}: a mask has bytes, {IGNORE} is no class"
            )
        self.names = tuple(names)
        if not self.names:
            raise InputError(f"{type(self).__name__}: the {split} split has no images")
        self.transform = TRANSFORMS.build(transform) if isinstance(transform, dict) else transform

    @property
    def metainfo(self) -> dict:
        """What mmengine keeps of a dataset in checkpoints and metrics."""
        return dict(dataset=type(self).__name__, split=self.split, classes=self.classes)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image [height, width, channels] uint8, and the mask [height, width] uint8 of classes, or 255.

        Raises:
            UnreadableImageError: one of them cannot be decoded, or their sizes do not fit.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: int | SampleKey) -> dict:
        """dict(image [channels, height, width] uint8, mask [height, width] int64, index), or dict(error)."""
        index, seed = key[:2] if isinstance(key, SampleKey) else (key, None)
        try:
            image, mask = self.load(index)
            if image.shape[:2] != mask.shape:
                raise UnreadableImageError(f"{self.names[index]}: image {image.shape[:2]} and mask {mask.shape} differ")
            known = (mask < len(self.classes)) | (mask == IGNORE)
            if not known.all():
                raise UnreadableImageError(
                    f"{self.names[index]}: its mask has the labels {', '.join(map(str, np.unique(mask[~known])[:5]))}, "
                    f"expected 0 to {len(self.classes) - 1}, or {IGNORE} for what is ignored"
                )
        except UnreadableImageError as error:
            return dict(error=str(error))
        if self.transform is not None:
            image, mask = self.transform(image, mask, seed)
        return dict(
            image=torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C")),
            mask=torch.from_numpy(mask.astype(np.int64)),
            index=index,
        )


@DATASETS.register_module()
class MaskFolder(MaskDataset):
    """A folder of images, and a folder of masks with the same names: PNG files whose pixel values are the classes.

    For ADE20K give images="images/training", masks="annotations/training" and zero_is_ignored=True. Other datasets have
    "{split}" in their paths, or no splits at all: then a share of the images is held out. Where there is no test split,
    the validation split takes its place.

    Args:
        root: the folder that holds both.
        split: "train", "val" or "test".
        classes: names of the classes, or their number.
        transform: see `MaskDataset`.
        images: folder of the images in `root`; {split} stands for the split.
        masks: folder of the masks in `root`; {split} stands for the split.
        zero_is_ignored: the label 0 is ignored, and 1 is the first class.
        max_share: share of the images that may lack a mask; they are left out. Also the share of the images whose size
            may differ from that of their mask; they are refused: a sample is checked here, and every image when it is
            loaded.
        holdout: where the splits have no folders, the share of all images that is the validation split, and also the
            test split.
        orientation: turn images as their EXIF note says, unless the size of the mask decides; see the module
            `orientation`. Masks are taken as they are stored.

    Raises:
        InputError: a missing folder, no images, two images with one mask, or too many images without a mask or with a
            mask of another size.
    """

    def __init__(
        self,
        root: str,
        split: str,
        classes: Sequence[str] | int,
        transform: dict | None = None,
        images: str = "images/{split}",
        masks: str = "masks/{split}",
        zero_is_ignored: bool = False,
        max_share: float = 0.01,
        holdout: float = 0.15,
        orientation: bool = True,
    ):
        check_split(split)
        check_holdout(holdout)
        called = "val" if split == "test" and not (Path(root) / images.format(split="test")).is_dir() else split
        folders = [Path(root) / part.format(split=called) for part in (images, masks)]
        whole = [folder.parent for folder in folders]
        is_split = "{split}" not in images or any((whole[0] / name).is_dir() for name in SPLITS)
        if not is_split:
            folders = whole
        for name, folder in zip(("images", "masks"), folders):
            if not folder.is_dir():
                raise InputError(f"{name}: no folder {folder}")
        paths = sorted(path for path in folders[0].rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise InputError(f"images: no image in {folders[0]}")
        self.paths, missing = [], []
        image_of: dict[Path, Path] = {}
        for path in paths:
            mask = folders[1] / path.relative_to(folders[0]).with_suffix(".png")
            if image_of.setdefault(mask, path) != path:
                raise InputError(
                    f"images: {image_of[mask]} and {path.name} would both have the mask {mask}; remove or rename one, "
                    f"and keep masks in a folder of their own"
                )
            if mask.is_file():
                self.paths.append((path, mask))
            else:
                missing.append(path)
        if missing:
            said = f"{len(missing)} of {len(paths)} images in {folders[0]} have no mask, the first: {missing[0].name}"
            if len(missing) > max_share * len(paths):
                raise InputError(f"masks: {said}; more than max_share={max_share:g}")
            print_log(f"masks: {said}; they are left out", logger="current", level=logging.WARNING)
        if not is_split:
            self.paths = [self.paths[i] for i in held_out(len(self.paths), split, holdout)]
        self.zero_is_ignored = zero_is_ignored
        self.orientation = orientation
        self.troubles = Troubles()
        for mask in sorted(set(folders[1].rglob("*.png")) - set(image_of)):
            self.troubles.add("masks without an image left out", mask.name)
        check_sizes(
            "masks", [path for path, _ in self.paths], lambda i: _size(self.paths[i][1]), self.troubles, max_share
        )
        self.troubles.log(f"{type(self).__name__} ({split})")
        if isinstance(classes, int):
            self.named, classes = False, [str(i) for i in range(classes)]
        super().__init__(split, classes, [str(path) for path, _ in self.paths], transform)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, path = self.paths[index]
        mask = self._classes(path)
        return read_image(image, 3, self.orientation, mask.shape), mask

    def _classes(self, path: Path) -> np.ndarray:
        try:
            with opened(path) as file:
                if file.mode not in ("L", "P", "1", "I", "I;16"):
                    raise ValueError(f"it has mode {file.mode}, expected grey or palette values that are the classes")
                mask = np.asarray(file).astype(np.int64)
        except Exception as error:  # PIL raises almost anything on broken files
            raise UnreadableImageError(f"{path}: {type(error).__name__}: {error}") from error
        if mask.max(initial=0) > IGNORE:
            raise UnreadableImageError(f"{path}: its labels run up to {mask.max()}, expected at most {IGNORE}")
        if self.zero_is_ignored:
            mask = np.where((mask == 0) | (mask == IGNORE), IGNORE, mask - 1)
        return mask.astype(np.uint8)


def _size(mask: Path) -> Size | None:
    """Height and width of a mask by its header; None for a file that is no image, which is reported on loading."""
    with contextlib.suppress(Exception), opened(mask) as file:  # PIL raises almost anything on broken files
        return file.height, file.width
    return None


@FUNCTIONS.register_module()
def collate_masks(samples: Sequence[dict]) -> dict:
    """dict(inputs: list of [C, H, W] uint8, masks: list of [H, W], indices, errors); unreadable ones are left out."""
    good = [sample for sample in samples if "error" not in sample]
    return dict(
        inputs=[sample["image"] for sample in good],
        masks=[sample["mask"] for sample in good],
        indices=[sample["index"] for sample in good],
        errors=[sample["error"] for sample in samples if "error" in sample],
    )
