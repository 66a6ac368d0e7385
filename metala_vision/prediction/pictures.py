"""Pictures out of files, folders, patterns, videos and memory, one after the other."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from metala_vision.data import UnreadableImageError
from metala_vision.data.image_folder import SUFFIXES, pixels_of, read_image
from metala_vision.errors import InputError

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
SPARE = 2  # frames that some containers state and do not have


class Picture(NamedTuple):
    """A picture, or why there is none.

    Attributes:
        name: see `Prediction.image`.
        pixels: [height, width, channels] uint8; None where it cannot be read.
        seconds: of a frame, since the beginning of the video.
        error: why it cannot be read.
    """

    name: str
    pixels: np.ndarray | None
    seconds: float | None = None
    error: str = ""


def places(images: Any) -> list[Any]:
    """Every image and video that is meant, in order: files by their paths, pictures in memory as they are.

    Args:
        images: a file, a folder (all images and videos in it, at any depth), a pattern such as "photos/*.jpg", a PIL
            image, an array [height, width, 1 or 3] of uint8, or a list of any of these.

    Raises:
        InputError: a file that is not there, a folder or a pattern without images, or something else.
    """
    if isinstance(images, (list, tuple)):
        return [place for one in images for place in places(one)]
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[2] not in (1, 3) or 0 in images.shape:
            raise InputError(
                f"images: got an array {images.shape} of {images.dtype}, expected [height, width, 1 or 3] of uint8"
            )
        return [images]
    if not isinstance(images, (str, Path)):
        raise InputError(f"images: got a {type(images).__name__}, expected paths, PIL images or arrays of uint8")
    path = Path(images)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [one for one in sorted(path.rglob("*")) if one.suffix.lower() in (*SUFFIXES, *VIDEOS) and one.is_file()]
        if not found:
            raise InputError(f"images: {path} has no files that end in {', '.join((*SUFFIXES, *VIDEOS))}")
        return found
    matching = [Path(one) for one in sorted(glob.glob(str(images), recursive=True)) if Path(one).is_file()]
    if not matching:
        raise InputError(f"images: got {str(images)!r}, which is no file, no folder and no pattern that files match")
    return matching


def pictures(found: Iterable[Any], channels: int, every: int = 1) -> Iterator[Picture]:
    """The pictures of what `places` has found.

    Args:
        found: paths, PIL images and arrays.
        channels: 3 for RGB, 1 for grey; every picture is converted.
        every: of a video, every n-th frame is taken.
    """
    for number, place in enumerate(found):
        if isinstance(place, Path):
            if place.suffix.lower() in VIDEOS:
                yield from _frames(place, channels, every)
            else:
                yield _read(place, channels)
        else:
            image = Image.fromarray(place.squeeze(2) if place.shape[2] == 1 else place) if _is_array(place) else place
            try:
                picture = Picture(str(number), pixels_of(image, channels))
            except Exception as error:  # a file that Pillow has opened and not yet read may be broken in any way
                picture = Picture(str(number), None, error=f"{type(error).__name__}: {error}")
            yield picture


def _is_array(place: Any) -> bool:
    return isinstance(place, np.ndarray)


def _read(path: Path, channels: int) -> Picture:
    try:
        return Picture(str(path), read_image(path, channels))
    except UnreadableImageError as error:
        reason = str(error).removeprefix(f"{path}: ")
        hint = "; a larger PIL.Image.MAX_IMAGE_PIXELS (--max-pixels) admits it" if "DecompressionBomb" in reason else ""
        return Picture(str(path), None, error=reason + hint)


def _frames(path: Path, channels: int, every: int) -> Iterator[Picture]:
    video = cv2.VideoCapture(str(path))
    try:
        number, broken = 0, False
        while video.grab():
            if number % every == 0:
                seconds = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
                decoded, frame = video.retrieve()
                if not decoded:
                    broken = True
                    break
                colours = cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGR2GRAY
                pixels = cv2.cvtColor(frame, colours).reshape(*frame.shape[:2], channels)
                yield Picture(f"{path}#{number}", pixels, seconds)
            number += 1
        stated = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        if number == 0:
            yield Picture(str(path), None, error="no frame of this video can be read")
        elif broken or stated - number > SPARE:
            states = f", and states {stated} frames" if stated > 0 else ""
            reason = "this frame and those after it cannot be read" if broken else "the video ends here"
            yield Picture(f"{path}#{number}", None, error=f"{reason}{states}")
    finally:
        video.release()
