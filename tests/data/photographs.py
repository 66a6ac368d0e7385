"""Pictures as cameras write them: stored sideways, with a note (EXIF) of how they are to be turned."""

from pathlib import Path

import numpy as np
from PIL import Image

ORIENTATION = 274  # the tag of the note
TURNED = range(1, 9)
SIDEWAYS = (5, 6, 7, 8)
HEIGHT, WIDTH = 64, 48  # as it is shown
RED = (0, 16, 16, 48)  # left, top, right, bottom of what is red in it, at no place that a turn leaves alone


def shown(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """What the photographer saw: grey, with something red at the left."""
    picture = np.full((height, width, 3), 128, np.uint8)
    left, top, right, bottom = RED
    picture[top:bottom, left:right] = 255, 0, 0
    picture[:16, -16:] = 0, 0, 255
    return picture


def stored(picture: np.ndarray, orientation: int) -> np.ndarray:
    """What the sensor saw; by the EXIF standard a note says which sides of the picture the first row and column are."""
    return {
        1: picture,  # top, left
        2: picture[:, ::-1],  # top, right
        3: picture[::-1, ::-1],  # bottom, right
        4: picture[::-1],  # bottom, left
        5: picture.swapaxes(0, 1),  # left, top
        6: picture[:, ::-1].swapaxes(0, 1),  # right, top
        7: picture[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: picture[::-1].swapaxes(0, 1),  # left, bottom
    }[orientation]


def photograph(path: Path, orientation: int, picture: np.ndarray | None = None, exif: bytes | None = None) -> Path:
    """Writes one that is shown as `picture`, or as `shown()`, with a note that says so, or another one."""
    note = Image.Exif()
    note[ORIENTATION] = orientation
    options = {".jpg": dict(quality=95, subsampling=0), ".webp": dict(lossless=True)}.get(path.suffix, {})
    pixels = np.ascontiguousarray(stored(shown() if picture is None else picture, orientation))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=note if exif is None else exif, **options)
    return path


def red_box(image) -> list[int]:
    """Left, top, right and bottom of what is red in a picture [3, height, width]."""
    red, green, blue = np.asarray(image).astype(int)
    rows, columns = np.nonzero((red > 190) & (green < 64) & (blue < 64))
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
