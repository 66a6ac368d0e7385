"""COCO's run-length codes of masks, by pycocotools."""

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from metala_vision.errors import InputError


def encode(masks: np.ndarray) -> list[dict]:
    """[K, height, width] of 0 and 1 -> a code for each, whose counts are bytes."""
    if len(masks) == 0:
        return []
    with _coder() as coder:
        return coder.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))


def decode(codes: Sequence[dict]) -> np.ndarray:
    """The inverse, of at least one code."""
    with _coder() as coder:
        return coder.decode(list(codes)).transpose(2, 0, 1)


def decode_any(mask: list | dict, height: int, width: int) -> np.ndarray:
    """A segmentation of COCO's files as [height, width]: polygons, or a code whose counts are numbers or text."""
    with _coder() as coder:
        if isinstance(mask, list):
            mask = coder.merge(coder.frPyObjects(mask, height, width))
        elif isinstance(mask["counts"], list):
            mask = coder.frPyObjects(mask, height, width)
        return coder.decode(mask)


def area(code: dict) -> float:
    """Pixels of a mask."""
    with _coder() as coder:
        return float(coder.area(code))


def check_installed() -> None:
    """Whether there is pycocotools.

    Raises:
        InputError: there is not.
    """
    if importlib.util.find_spec("pycocotools") is None:
        raise InputError(
            "pycocotools is not installed, which reads COCO's masks and computes mAP; "
            "pip install 'metala_vision[detection]'"
        )


@contextlib.contextmanager
def _coder() -> Iterator:
    check_installed()
    from pycocotools import mask

    with warnings.catch_warnings():
        # It makes its arrays the way of numpy 1, which numpy 2 still takes.
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword", DeprecationWarning)
        yield mask
