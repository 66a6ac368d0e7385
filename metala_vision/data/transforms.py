"""Per-image augmentation on albumentations, strict about arguments and seeded per sample."""

import os
import warnings
from collections.abc import Sequence

# albumentations asks a package index for its newest version while it is imported, and waits.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
from mmengine.registry import TRANSFORMS

from metala_vision.errors import InputError, near_matches

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
        self.compose = A.Compose([_build(dict(t)) for t in transforms])

    def __call__(self, image: np.ndarray, seed: int | None = None) -> np.ndarray:
        """One image; the same `seed` gives the same result, None continues albumentations' own stream."""
        if seed is not None:
            # Every worker has a copy of the same stream: without a seed per sample they augment alike, each epoch.
            self.compose.set_random_seed(seed)
        return self.compose(image=image)["image"]


@TRANSFORMS.register_module()
class EvalTransform(Albumentations):
    """Resize of the short side to `img_size / crop_ratio`, then the central square of side `img_size`."""

    def __init__(self, img_size: int, crop_ratio: float = 0.875, interpolation: str = "bicubic"):
        _check_size(img_size)
        if not 0 < crop_ratio <= 1:
            raise InputError(f"crop_ratio: got {crop_ratio!r}, expected a number in (0, 1]")
        side = max(img_size, round(img_size / crop_ratio))
        super().__init__(
            [
                dict(type="SmallestMaxSize", max_size=side, interpolation=_interpolation(interpolation)),
                dict(type="CenterCrop", height=img_size, width=img_size),
            ]
        )


@TRANSFORMS.register_module()
class TrainTransform(Albumentations):
    """Random resized crop and horizontal flip, then whatever `extra` lists.

    Args:
        img_size: side of the square.
        scale: share of the area that a crop covers.
        hflip: probability of the flip.
        interpolation: "nearest", "bilinear", "bicubic" or "area".
        extra: further albumentations, as for `Albumentations`.
    """

    def __init__(
        self,
        img_size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        interpolation: str = "bicubic",
        extra: Sequence[dict] = (),
    ):
        _check_size(img_size)
        crop = dict(
            type="RandomResizedCrop",
            size=(img_size, img_size),
            scale=tuple(scale),
            interpolation=_interpolation(interpolation),
        )
        super().__init__([crop, dict(type="HorizontalFlip", p=hflip), *extra])


def _build(config: dict) -> A.BasicTransform:
    name = config.pop("type", None)
    transform = getattr(A, name, None) if isinstance(name, str) else None
    if not (isinstance(transform, type) and issubclass(transform, A.BasicTransform)):
        known = [n for n in dir(A) if isinstance(getattr(A, n), type) and issubclass(getattr(A, n), A.BasicTransform)]
        raise InputError(f"transforms: unknown albumentation {name!r}{near_matches(str(name), known)}")
    with warnings.catch_warnings():
        # albumentations warns of arguments it does not know and goes on without them.
        warnings.simplefilter("error", UserWarning)
        try:
            return transform(**config)
        except (UserWarning, ValueError, TypeError) as error:
            raise InputError(
                f"transforms: {name}({', '.join(f'{k}={v!r}' for k, v in config.items())}): {error}"
            ) from error


def _check_size(img_size: int) -> None:
    if not isinstance(img_size, int) or img_size < 1:
        raise InputError(f"img_size: got {img_size!r}, expected a positive integer")


def _interpolation(name: str) -> int:
    if name not in INTERPOLATION:
        raise InputError(f"interpolation: got {name!r}, expected one of {tuple(INTERPOLATION)}")
    return INTERPOLATION[name]
