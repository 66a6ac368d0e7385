"""A folder of images with a subfolder per class, in any of the usual layouts."""

import logging
from pathlib import Path

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from PIL import Image

from metala_vision.errors import InputError

from .base import LabelledImages, UnreadableImageError, check_holdout, check_split
from .folder_index import class_names, has_classes, list_images
from .orientation import Size, WrongSizeError, needed_turn, opened
from .packed import PackedStrings
from .splits import SPLITS, stratified_split

# Suffixes of the files that are taken for images in datasets with masks or boxes.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@DATASETS.register_module()
class ImageFolder(LabelledImages):
    """Images under `root`, one folder per class. The three splits share no file:

    - root/{train,val,test}/CLASS: as they are;
    - root/{train,val}/CLASS (ImageNet, also with its unlabelled root/test/IMAGE) or root/{train,test}/CLASS: the second
      folder is the test split, and val is held out of `train`;
    - root/CLASS: test and val are both held out;
    - root/test/CLASS alone: there is only a test split.

    Args:
        root: the folder.
        split: "train", "val" or "test".
        transform: see `LabelledImages`.
        holdout: share of each class for every split that has no folder of its own. 0 holds nothing out of ImageNet's
            `train`: val and test are then both the `val` folder, and nothing may be chosen by it.
        channels: 3 for RGB, 1 for grey; every image is converted.
        cache: remember the list of files under the user's cache folder, see `folder_index`.
        orientation: turn pictures as their EXIF note says. False reads them as timm and torchvision do: all but TIFF
            files as they are stored.

    Raises:
        InputError: missing or empty folder, a class without images, classes that differ between splits.
    """

    def __init__(
        self,
        root: str,
        split: str,
        transform: dict | None = None,
        holdout: float = 0.1,
        channels: int = 3,
        cache: bool = True,
        orientation: bool = True,
    ):
        check_split(split)
        if channels not in (1, 3):
            raise InputError(f"channels: got {channels!r}, expected 3 (RGB) or 1 (grey)")
        check_holdout(holdout)
        self.channels = channels
        self.orientation = orientation
        folder = Path(root)
        if not folder.is_dir():
            raise InputError(
                f"--data-root (root): no folder {folder}; expected {folder}/train/CLASS/IMAGE or {folder}/CLASS/IMAGE"
            )
        own = [name for name in SPLITS if (folder / name).is_dir()]
        if own == list(SPLITS) and not has_classes(folder / "test"):
            own.remove("test")
            print_log(
                f"{folder}/test has no class folders: it is left out, as the unlabelled images of ImageNet's test are",
                logger="current",
                level=logging.WARNING,
            )
        if "train" in own and len(own) == 1:
            raise InputError(f"--data-root (root): {folder} has a train folder and neither val nor test beside it")
        if not own:
            if holdout == 0:
                raise InputError(f"holdout: got 0, but {folder} has no folder for val or test; expected above 0")
            fractions = (1 - 2 * holdout, holdout, holdout)
            classes, paths, labels = _part(folder, fractions, SPLITS.index(split), split, cache)
        elif len(own) == len(SPLITS) or (own == ["test"] and split == "test"):
            classes, paths, labels = list_images(folder / split, cache)
        elif "train" in own:
            other = "val" if "val" in own else "test"
            if holdout == 0 and split == "train":
                classes, paths, labels = list_images(folder / "train", cache)
            elif holdout == 0 or split == "test":
                classes, paths, labels = list_images(folder / other, cache)
            else:
                classes, paths, labels = _part(
                    folder / "train", (1 - holdout, holdout), SPLITS.index(split), split, cache
                )
        else:
            raise InputError(f"--data-root (root): {folder} has {', '.join(own)} and no train folder")
        if "train" in own:
            train_classes = class_names(folder / "train")
            if classes != train_classes:
                differing = sorted(set(classes) ^ set(train_classes))
                raise InputError(
                    f"--data-root (root): the classes of {split} and train differ in {folder}: "
                    f"{', '.join(differing[:10])}"
                )
        self.paths = PackedStrings(paths)
        super().__init__(split, classes, labels, transform)

    def load(self, index: int) -> np.ndarray:
        return read_image(self.paths[index], self.channels, self.orientation)


def read_image(path: str | Path, channels: int, orientation: bool = True, stated: Size | None = None) -> np.ndarray:
    """An image file of any mode as [height, width, channels] uint8. Transparent images are laid over white.

    Args:
        path: of the file.
        channels: 3 for RGB, 1 for grey.
        orientation: turn the picture as its EXIF note says, unless `stated` decides; see the module `orientation`.
        stated: height and width that its annotations state; None where they state none.

    Raises:
        UnreadableImageError: the file is no image, is incomplete, has another size than stated, or has so many pixels
            that Pillow takes it for a decompression bomb.
    """
    try:
        with opened(path) as image:
            return pixels_of(image, channels, orientation, stated)
    except WrongSizeError as error:
        raise UnreadableImageError(f"{path}: {error}") from error
    # PIL raises almost anything on broken files: SyntaxError for PNG chunks, ValueError, struct.error, ...
    except Exception as error:
        raise UnreadableImageError(f"{path}: {type(error).__name__}: {error}") from error


def pixels_of(image: Image.Image, channels: int, orientation: bool = True, stated: Size | None = None) -> np.ndarray:
    """An image that Pillow has opened, as `read_image` reads a file. 16-bit grey, which Pillow would clip, is scaled.

    Raises:
        WrongSizeError: it has another size than stated.
        Exception: whatever Pillow raises on broken files.
    """
    turn = needed_turn(image, orientation, stated)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # PGM: 16 bits too
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode}) have no agreed range; save it with 8 or 16 bits")
    if image.has_transparency_data:  # in most files transparent pixels are black
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode:
        image = image.convert(mode)
    if turn is not None:
        image = image.transpose(turn)
    pixels = np.asarray(image)  # reads the file; only now does Pillow turn a TIFF file and change its size
    return pixels.reshape(*pixels.shape[:2], channels)


def _part(
    folder: Path, fractions: tuple[float, ...], part: int, split: str, cache: bool
) -> tuple[list[str], list[str], np.ndarray]:
    """One part of a folder that several splits share."""
    classes, paths, labels = list_images(folder, cache)
    chosen = stratified_split(labels, fractions)[part]
    print_log(
        f"{folder}: the {split} split is {len(chosen)} of its {len(paths)} images", logger="current", level=logging.INFO
    )
    return classes, [paths[i] for i in chosen], labels[chosen]
