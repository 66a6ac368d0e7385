"""Per-image augmentation on albumentations, strict about arguments and seeded per sample."""

import os
import random
import warnings
from collections.abc import Sequence
from typing import Any

# albumentations asks a package index for its newest version while it is imported, and waits.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
from mmengine.registry import TRANSFORMS

from metala_vision.errors import InputError, near_matches

from .deit import TimmErasing, TimmRandAugment
from .resize import ResizedCrop, ShortSide, middle

INTERPOLATION = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}


@TRANSFORMS.register_module()
class Albumentations:
    """A list of albumentations, by name and arguments, on uint8 images [height, width, channels].

    Args:
        transforms: dicts such as dict(type="HorizontalFlip", p=0.5).

    Raises:
        InputError: an unknown transform, or an argument it does not take or that has the wrong type or range.
    """

    def __init__(self, transforms: Sequence[dict]):
        self.compose = A.Compose([build_albumentation(dict(t)) for t in transforms])

    def __call__(self, image: np.ndarray, seed: int | None = None) -> np.ndarray:
        """One image; the same `seed` gives the same result, None continues albumentations' own stream."""
        if seed is not None:
            # Every worker has a copy of the same stream: without a seed per sample they augment alike, each epoch.
            reseed(self.compose, seed)
        return self.compose(image=image)["image"]

    def at(self, img_size: int) -> "Albumentations":
        """The same for another size of the images it makes, where the sampler asks for one.

        Raises:
            InputError: it has no such argument.
        """
        raise InputError(f"transform: {type(self).__name__} has no img_size to change; use TrainTransform")


@TRANSFORMS.register_module()
class EvalTransform(Albumentations):
    """Resize until the image just covers a box of `img_size / crop_ratio`, then the central `img_size` of it.

    Args:
        img_size: side of a square, whose box the short side of the image fits, or (height, width).
        crop_ratio: share of the box that is kept, in (0, 1].
        interpolation: "nearest", "bilinear", "bicubic" or "area".
    """

    def __init__(self, img_size: int | Sequence[int], crop_ratio: float = 0.875, interpolation: str = "bicubic"):
        height, width = _sides(img_size)
        if not 0 < crop_ratio <= 1:
            raise InputError(f"crop_ratio: got {crop_ratio!r}, expected a number in (0, 1]")
        self.img_size, self.crop_ratio, self.interpolation = img_size, crop_ratio, interpolation
        self.box = tuple(max(side, round(side / crop_ratio)) for side in (height, width))
        super().__init__(
            [
                dict(type="ShortSide", max_size_hw=self.box, interpolation=_interpolation(interpolation)),
                dict(type="CenterCrop", height=height, width=width),
            ]
        )

    def __call__(self, image: np.ndarray, seed: int | None = None) -> np.ndarray:
        """One image; nothing is random, so `seed` changes nothing and costs nothing."""
        return super().__call__(middle(image, *self.box))


# What follows crop and flip, by how much it changes an image. Colours come first, while all pixels are the image's own:
# rotations add borders, and erasing adds noise.
_TONES = (
    dict(type="AutoContrast", p=1.0),
    dict(type="Equalize", p=1.0),
    dict(type="Posterize", num_bits=(4, 7), p=1.0),
    dict(type="Solarize", threshold_range=(0.4, 0.9), p=1.0),
    dict(type="Sharpen", alpha=(0.2, 0.8), p=1.0),
    dict(type="RandomBrightnessContrast", brightness_limit=0.4, contrast_limit=0.4, p=1.0),
    dict(type="Affine", rotate=(-27, 27), p=1.0),
    dict(type="Affine", shear=dict(x=(-15, 15), y=(0, 0)), p=1.0),
    dict(type="Affine", shear=dict(x=(0, 0), y=(-15, 15)), p=1.0),
    dict(type="Affine", translate_percent=(-0.2, 0.2), p=1.0),
)
STRENGTHS = {
    "light": (),
    "medium": (
        dict(type="ColorJitter", brightness=0.3, contrast=0.3, saturation=0.3, hue=0.0, p=0.8),
        dict(type="Affine", rotate=(-10, 10), p=0.3),
    ),
    "strong": (
        dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0, p=0.8),
        dict(type="SomeOf", transforms=_TONES, n=2, p=1.0),
        dict(type="TimmErasing", p=0.25),
    ),
}


@TRANSFORMS.register_module()
class TrainTransform(Albumentations):
    """Random resized crop and horizontal flip, then one of three strengths of augmentation or RandAugment.

    Args:
        img_size: side of the square.
        scale: share of the area that a crop covers.
        hflip: probability of the flip.
        interpolation: "nearest", "bilinear", "bicubic" or "area".
        strength: "light" (nothing more), "medium" (colours, small rotations) or "strong" (two of ten operations,
            colours, an erased rectangle in a quarter of the images).
        rand_augment: timm's name of a RandAugment policy for RGB images, such as "rand-m9-mstd0.5-inc1" (DeiT's).
        erasing: probability of a rectangle erased to random pixels, last of all, by timm's rule (`TimmErasing`).
        extra: further albumentations, applied before the erasing, as for `Albumentations`.
    """

    def __init__(
        self,
        img_size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        interpolation: str = "bicubic",
        strength: str = "light",
        rand_augment: str | None = None,
        erasing: float = 0.0,
        extra: Sequence[dict] = (),
    ):
        _check_size(img_size)
        self.arguments: dict[str, Any] = dict(
            scale=scale,
            hflip=hflip,
            interpolation=interpolation,
            strength=strength,
            rand_augment=rand_augment,
            erasing=erasing,
            extra=extra,
        )
        self.others: dict[int, TrainTransform] = {}  # of other sizes
        if strength not in STRENGTHS:
            raise InputError(f"strength: got {strength!r}, expected one of {tuple(STRENGTHS)}")
        if not 0 <= erasing <= 1:
            raise InputError(f"erasing: got {erasing!r}, expected a probability")
        crop = dict(
            type="ResizedCrop",
            size=(img_size, img_size),
            scale=tuple(scale),
            interpolation=_interpolation(interpolation),
        )
        transforms = [crop, dict(type="HorizontalFlip", p=hflip), *STRENGTHS[strength]]
        if rand_augment is not None:
            transforms.append(dict(type="TimmRandAugment", policy=rand_augment, img_size=img_size))
        transforms += extra
        if erasing > 0:
            transforms.append(dict(type="TimmErasing", p=erasing))
        super().__init__(transforms)

    def at(self, img_size: int) -> "TrainTransform":
        if img_size not in self.others:
            self.others[img_size] = TrainTransform(img_size, **self.arguments)
        return self.others[img_size]


OWN = {own.__name__: own for own in (TimmRandAugment, TimmErasing, ShortSide, ResizedCrop)}


def build_albumentation(config: dict) -> A.BasicTransform | A.BaseCompose:
    name = config.pop("type", None)
    transform = OWN.get(name) or getattr(A, name, None) if isinstance(name, str) else None
    kinds = (A.BasicTransform, A.BaseCompose)
    if not (isinstance(transform, type) and issubclass(transform, kinds)):
        known = [n for n in dir(A) if isinstance(getattr(A, n), type) and issubclass(getattr(A, n), kinds)]
        raise InputError(f"transforms: unknown albumentation {name!r}{near_matches(str(name), known)}")
    if issubclass(transform, A.BaseCompose):
        config["transforms"] = [build_albumentation(dict(member)) for member in config.get("transforms", ())]
    with warnings.catch_warnings():
        # albumentations warns of arguments it does not know and goes on without them.
        warnings.simplefilter("error", UserWarning)
        try:
            return transform(**config)
        except (UserWarning, ValueError, TypeError) as error:
            raise InputError(
                f"transforms: {name}({', '.join(f'{k}={v!r}' for k, v in config.items())}): {error}"
            ) from error


def reseed(compose: A.BaseCompose, seed: int) -> None:
    """Gives all transforms of a pipeline one stream to draw from in turn.

    `set_random_seed` would give each a stream of its own from the same seed. All then draw the same numbers: a flip
    would go with small crops alone.
    """
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))


def _check_size(img_size: int) -> None:
    if not isinstance(img_size, int) or img_size < 1:
        raise InputError(f"img_size: got {img_size!r}, expected a positive integer")


def _sides(img_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of images that are square or not."""
    if isinstance(img_size, Sequence) and not isinstance(img_size, str) and len(img_size) == 2:
        for side in img_size:
            _check_size(side)
        return img_size[0], img_size[1]
    if isinstance(img_size, Sequence):
        raise InputError(f"img_size: got {img_size!r}, expected one integer, or (height, width)")
    _check_size(img_size)
    return img_size, img_size


def _interpolation(name: str) -> int:
    if name not in INTERPOLATION:
        raise InputError(f"interpolation: got {name!r}, expected one of {tuple(INTERPOLATION)}")
    return INTERPOLATION[name]
