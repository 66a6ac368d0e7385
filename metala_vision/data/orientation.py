"""Which way up a picture is.

Cameras store what their sensor saw, and note beside it (EXIF) how it is to be turned. Viewers, browsers and the tools
that people draw boxes with show the picture turned, and write down the turned size. Files that a script made of the
stored pixels have the stored size. So what annotations say of a picture's size decides:

- it is the turned size: the note is followed;
- it is the stored size and not the turned one: the picture is read as it is stored;
- it is both, as for square pictures, mirrored ones and those upside down, or nothing is said of it: the note is
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

TURNS: dict[object, Image.Transpose] = {  # by what a note says, which may be anything
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

CARRIERS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where Pillow keeps what may hold a note


class WrongSizeError(Exception):
    """A picture of another size than its annotations state; the message has both."""


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """An image file with only its header read. One so large that a few bytes ask for gigabytes is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Pillow's on notes that are torn. They name no file, and the pixels are whole.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
        with Image.open(path) as image:
            yield image


def needed_turn(image: Image.Image, follow: bool, stated: Size | None) -> Image.Transpose | None:
    """How the pixels that Pillow gives for an opened image have to be turned, by the rule above.

    Pillow follows the note of a TIFF file by itself; one that has to be as stored is turned back. Where `follow` is
    False and nothing else decides, pixels stay as Pillow gives them, which is how timm and torchvision read.

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
    """A picture's size as it is read where nothing is stated. It raises whatever Pillow does."""
    with opened(path) as image:
        noted, stored = _noted(image)
        return _turned(stored, noted) if follow or image.format == "TIFF" else stored


def check_size(path: str | Path, stated: Size) -> None:
    """Whether a picture's header agrees with its annotations.

    Raises:
        WrongSizeError: it does not.
        Exception: whatever Pillow raises for what is no image.
    """
    with opened(path) as image:
        if image.size != stated[::-1]:  # as most are; a look at the note may decode a PNG file
            needed_turn(image, True, stated)


def _noted(image: Image.Image) -> tuple[Image.Transpose | None, Size]:
    """How a picture is to be turned by its own note, and its stored size."""
    if isinstance(image, TiffImageFile):  # before its pixels are loaded, as Pillow then drops the note
        tags = image.tag_v2
        noted = tags.get(ExifTags.Base.Orientation)
        return TURNS.get(noted), (tags[ExifTags.Base.ImageLength], tags[ExifTags.Base.ImageWidth])
    if image.format == "PNG":  # its note may stand behind the pixels: torn ones are an error, a torn note is none
        image.load()
    if CARRIERS.isdisjoint(image.info):
        return None, (image.height, image.width)
    try:
        noted = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises almost anything on torn notes; viewers show such a picture as it is stored
        noted = None
    return TURNS.get(noted), (image.height, image.width)


def _turned(size: Size, turn: Image.Transpose | None) -> Size:
    return size[::-1] if turn in SIDEWAYS else size


def _text(size: Size) -> str:
    """Width first, as people write it."""
    return f"{size[1]}x{size[0]}"
