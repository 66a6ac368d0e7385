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


def runs(counts: list | str) -> np.ndarray | None:
    """Lengths of the runs of a code, zeros first, whose counts are numbers or text; None for what is no code.

    pycocotools checks little: where runs do not fill a mask, the rest of it is what was in memory.
    """
    try:
        if isinstance(counts, list):
            lengths = np.array(counts)
            whole = lengths.ndim == 1 and lengths.dtype.kind in "iu" and (lengths >= 0).all()
            return lengths if whole else None
        digits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except (ValueError, AttributeError, OverflowError):
        return None
    # Each number is in digits of five bits, the lowest first, and a sixth bit that says whether another one follows.
    follows = digits & 32 > 0
    if len(digits) == 0 or digits.min() < 0 or digits.max() > 63 or follows[-1]:
        return None
    ends = np.flatnonzero(~follows)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:  # more than 32 bits
        return None
    values = np.add.reduceat((digits & 31) << (5 * place), starts)
    values -= np.where(digits[ends] & 16, 1 << (5 * (place[ends] + 1)), 0)
    # From the fourth on, a number is what a run is longer than the last but one.
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values if values.min() >= 0 else None


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
