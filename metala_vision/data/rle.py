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
    """The inverse of `encode`, for at least one code: [K, height, width] uint8."""
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
    """Lengths of the runs of a code, the first one of zeros. Its counts are numbers or text; None if they are no code.

    pycocotools checks little: where the runs do not fill a mask, it leaves uninitialised memory in the rest.
    """
    try:
        if isinstance(counts, list):
            lengths = np.array(counts)
            whole = lengths.ndim == 1 and lengths.dtype.kind in "iu" and (lengths >= 0).all()
            return lengths if whole else None
        digits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except (ValueError, AttributeError, OverflowError):
        return None
    # Each number is written in digits of five bits, the lowest first; a sixth bit says whether another digit follows.
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
    # From the fourth on, each number is the difference between its run and the run two places before.
    values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values if values.min() >= 0 else None


def area(code: dict) -> float:
    """Number of pixels in a mask, from its code."""
    with _coder() as coder:
        return float(coder.area(code))


def check_installed() -> None:
    """Checks that pycocotools is installed.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("pycocotools") is None:
        raise InputError(
            "pycocotools is not installed, which reads COCO's masks and computes mAP; "
            "pip install pycocotools, or metala_vision with the extra 'detection'"
        )


@contextlib.contextmanager
def _coder() -> Iterator:
    check_installed()
    from pycocotools import mask

    with warnings.catch_warnings():
        # pycocotools makes its arrays as numpy 1 did, which numpy 2 still accepts.
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword", DeprecationWarning)
        yield mask
