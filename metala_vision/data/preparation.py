"""Pictures as a model's test prepares them, by what the model says of itself."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metala_vision.errors import InputError

from .resize import resize
from .transforms import INTERPOLATION, EvalTransform


class Preparation:
    """A picture -> the normalised image that a model sees.

    Args:
        described: by the model, see `metala_vision.description`: input_size, crop_pct, interpolation, mean and std.
            With a crop_mode of "squash", as timm calls it, sides are resized each for itself before the crop.
        img_size: height and width, or the side of the square; None is the model's own.

    Raises:
        InputError: a size or an interpolation that is none; a model that reads pictures as sequences of pixels, which
            no resizing makes.
    """

    def __init__(self, described: dict, img_size: int | Sequence[int] | None = None):
        size = described["input_size"][1:] if img_size is None else img_size
        if described["input_size"][1] == 1 and described.get("crop_pct") is None:
            raise InputError(
                f"source: the model reads a sequence of {described['input_size'][2]} pixels, which no picture is made "
                f"into; call the model of metala_vision.deploy.model_of with images [batch, channels, 1, pixels]"
            )
        crop, interpolation = described.get("crop_pct") or 1.0, described.get("interpolation") or "bicubic"
        self.transform = EvalTransform(size, crop, interpolation)
        self.squashed = described.get("crop_mode") == "squash"
        self.mean, self.std = (torch.tensor(described[key]).view(-1, 1, 1) for key in ("mean", "std"))

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """[height, width, C] uint8 -> [C, H, W] float32."""
        if self.squashed:
            height, width = self.transform.box
            pixels = resize(pixels, height, width, INTERPOLATION[self.transform.interpolation])
        seen = self.transform(pixels)
        image = torch.from_numpy(np.ascontiguousarray(seen.reshape(*seen.shape[:2], -1).transpose(2, 0, 1)))
        return (image.float() / 255 - self.mean) / self.std
