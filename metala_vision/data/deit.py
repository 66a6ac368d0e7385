"""The augmentations of DeiT's recipe as albumentations, which draw from their pipeline's stream."""

import functools
import math
import random
from collections.abc import Callable

import albumentations as A
import numpy as np
from PIL import Image
from timm.data import rand_augment_transform

from metala_vision.errors import InputError

GREY = (124, 116, 104)  # mean colour of ImageNet, with which rotations and shifts fill borders
NOISE = (116.0, 57.0)  # mean and deviation of ImageNet over all channels


class TimmRandAugment(A.ImageOnlyTransform):
    """timm's RandAugment, resampling by bicubic interpolation as DeiT does.

    Args:
        policy: timm's name of it, such as "rand-m9-mstd0.5-inc1".
        img_size: side of the images; shifts are shares of it.

    Raises:
        ValueError: no policy that timm knows.
    """

    def __init__(self, policy: str, img_size: int, p: float = 1.0):
        super().__init__(p=p)
        hparams = dict(translate_const=int(img_size * 0.45), img_mean=GREY, interpolation=Image.Resampling.BICUBIC)
        try:
            self.augment = rand_augment_transform(policy, hparams)
        except (AssertionError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{policy!r} is no policy that timm knows: {error}") from error
        for operation in self.augment.ops:
            if operation.name.startswith("Posterize"):
                operation.level_fn = functools.partial(_some_bits, operation.level_fn)

    def apply(self, img: np.ndarray, **params) -> np.ndarray:
        if img.shape[2] != 3:
            raise InputError(f"rand_augment: got an image of {img.shape[2]} channels, expected 3 (RGB)")
        former = random.getstate(), np.random.get_state()  # noqa: NPY002
        seed = self.py_random.getrandbits(32)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            return np.asarray(self.augment(Image.fromarray(img)))
        finally:
            random.setstate(former[0])
            np.random.set_state(former[1])  # noqa: NPY002


class TimmErasing(A.ImageOnlyTransform):
    """timm's random erasing in its "pixel" mode, on uint8 images: one rectangle of normal noise.

    Its area is uniform in `area`, its aspect ratio log-uniform from 0.3 to 1 / 0.3; a rectangle that does not fit is
    drawn anew, up to ten times. timm's noise is standard normal after normalisation, ours has ImageNet's mean and
    deviation.

    Args:
        area: range of its share of the image's area.
    """

    def __init__(self, area: tuple[float, float] = (0.02, 1 / 3), p: float = 0.25):
        super().__init__(p=p)
        self.area = area

    def apply(self, img: np.ndarray, **params) -> np.ndarray:
        height, width, channels = img.shape
        for _ in range(10):
            area = self.py_random.uniform(*self.area) * height * width
            ratio = math.exp(self.py_random.uniform(math.log(0.3), -math.log(0.3)))
            rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if rows < height and columns < width:
                top, left = self.py_random.randint(0, height - rows), self.py_random.randint(0, width - columns)
                noise = self.random_generator.standard_normal((rows, columns, channels), np.float32)
                img = img.copy()
                img[top : top + rows, left : left + columns] = (NOISE[0] + NOISE[1] * noise).round().clip(0, 255)
                return img
        return img


def _some_bits(level_to_bits: Callable, level: float, hparams: dict) -> tuple[int]:
    """The number of bits that timm lets Posterize keep, but at least 1: Pillow refuses the 0 of the highest levels."""
    return (max(1, level_to_bits(level, hparams)[0]),)
