"""Resizing as Pillow, and so timm's evaluation, does it: the filters widen with the reduction. OpenCV's skip pixels.

PyTorch's uint8 kernels give Pillow's values within two levels of 255, in 0.4 of its time.
"""

import math
import warnings

import albumentations as A
import cv2
import numpy as np
import torch
from torch.nn import functional as F

LONGEST = 8
MODES = {cv2.INTER_LINEAR: "bilinear", cv2.INTER_CUBIC: "bicubic"}


def resize(image: np.ndarray, height: int, width: int, interpolation: int) -> np.ndarray:
    """[h, w, channels] uint8 -> [height, width, channels]. `interpolation` is OpenCV's constant; what is neither linear
    nor cubic is left to OpenCV.
    """
    if image.shape[:2] == (height, width):
        return image
    if interpolation not in MODES:
        channels = image.shape[2]
        return cv2.resize(image, (width, height), interpolation=interpolation).reshape(height, width, channels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
        pixels = torch.from_numpy(image)
    pixels = pixels.permute(2, 0, 1)[None]
    planes = F.interpolate(pixels, (height, width), mode=MODES[interpolation], antialias=True)[0].numpy()
    if len(planes) > 4:
        return np.ascontiguousarray(planes.transpose(1, 2, 0))
    return cv2.merge(list(planes)).reshape(height, width, -1)  # the same in a seventh of the time, or less


def middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of an image, all that a central crop may see of it when the image covers a box of this size.

    It is at most `LONGEST` times as long as it is short, or twice as often as the box is. Resizing the whole of an
    image of 1x30000 pixels, a few kilobytes on disk, would take gigabytes.
    """
    longest = max(LONGEST, 2 * math.ceil(max(height, width) / min(height, width))) * min(image.shape[:2])
    top, left = (max(0, side - longest) // 2 for side in image.shape[:2])
    return image[top : top + longest, left : left + longest]


class ShortSide(A.SmallestMaxSize):
    """albumentations' resize of the short side to a length, or until a box is covered, with `resize` for images."""

    def apply(self, img: np.ndarray, scale: float, **params) -> np.ndarray:
        height, width = (max(1, round(side * scale)) for side in img.shape[:2])
        return resize(img, height, width, self.interpolation)


class ResizedCrop(A.RandomResizedCrop):
    """albumentations' random crop of a share of the area, with `resize` for images."""

    def apply(self, img: np.ndarray, crop_coords: tuple[int, int, int, int], **params) -> np.ndarray:
        left, top, right, bottom = crop_coords
        height, width = self.size
        return resize(img[top:bottom, left:right], height, width, self.interpolation)
