"""Which way up a picture is.

Cameras store what their sensor saw, and note beside it (EXIF) how it is to be turned. Viewers, browsers and the tools
that people draw boxes with show the picture turned, and write down the turned size. Annotations that a script made from
the stored pixels have the stored size. So the size that the annotations state decides:

- it is the turned size: the note is followed;
- it is the stored size and not the turned one: the picture is read as it is stored;
- it is both (square pictures, and those that are only mirrored or upside down), or no size is stated: the note is
  followed, unless the dataset was given `orientation=False`;
- it is neither: somebody resized the pictures and not the boxes. The picture is refused.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

Size = tuple[int, int]  # height and width

TURNS: dict[object, Image.Transpose] = {  # by the value of a note, which may be anything
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = tuple(TURNS[value] for value in (5, 6, 7, 8))  # those that swap height and width
BACK = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}

CARRIERS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # keys of Pillow's info that may hold a note


class WrongSizeError(Exception):
    """A picture of another size than its annotations state; the message has both."""


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """An image file of which only the header is read. One that Pillow takes for a decompression bomb is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Pillow warns of damaged notes. The warnings name no file, and the pixels are intact.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
        with Image.open(path) as image:
            yield image


def needed_turn(image: Image.Image, follow: bool, stated: Size | None) -> Image.Transpose | None:
    """How to turn the pixels that Pillow gives for an opened image, by the rule at the top of this file.

    Pillow itself follows the note of a TIFF file, so a TIFF file that is wanted as stored has to be turned back. Where
    `follow` is False and nothing else decides, pixels stay as Pillow gives them, as timm and torchvision read them.

    Raises:
        WrongSizeError: the stated size is neither the turned nor the stored one.
    """
    noted, stored = _noted(image)
    shown = _turned(stored, noted)
    by_pillow = image.format == "TIFF"
    if stated is None or stated == shown == stored:
        return noted if follow and not by_pillow else None
    if stated == shown:
        return None if by_pillow else noted
    if stated == stored:
        return BACK.get(noted, noted) if by_pillow and noted is not None else None
    also = f" ({_text(stored)} as stored)" if stored != shown else ""
    raise WrongSizeError(f"it is {_text(shown)} pixels{also} and was annotated as {_text(stated)}")


def shown_size(path: str | Path, follow: bool) -> Size:
    """The size of a picture as it is read when no size is stated. Raises whatever Pillow raises."""
    with opened(path) as image:
        noted, stored = _noted(image)
        return _turned(stored, noted) if follow or image.format == "TIFF" else stored


def check_size(path: str | Path, stated: Size) -> None:
    """Checks that the header of a picture agrees with its annotations.

    Raises:
        WrongSizeError: it does not.
        Exception: whatever Pillow raises for what is no image.
    """
    with opened(path) as image:
        if image.size != stated[::-1]:  # most agree, and reading the note may decode a whole PNG file
            needed_turn(image, True, stated)


def _noted(image: Image.Image) -> tuple[Image.Transpose | None, Size]:
    """How a picture is to be turned by its own note, and its stored size."""
    if isinstance(image, TiffImageFile):  # read before the pixels are loaded: Pillow drops the note then
        tags = image.tag_v2
        noted = tags.get(ExifTags.Base.Orientation)
        return TURNS.get(noted), (tags[ExifTags.Base.ImageLength], tags[ExifTags.Base.ImageWidth])
    if image.format == "PNG":  # its note may follow the pixels: damaged pixels are an error, a damaged note is not
        image.load()
    if CARRIERS.isdisjoint(image.info):
        return None, (image.height, image.width)
    try:
        noted = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises almost anything on damaged notes; viewers show such a picture as stored
        noted = None
    return TURNS.get(noted), (image.height, image.width)


def _turned(size: Size, turn: Image.Transpose | None) -> Size:
    return size[::-1] if turn in SIDEWAYS else size


def _text(size: Size) -> str:
    """Width first, as people write it."""
    return f"{size[1]}x{size[0]}"
