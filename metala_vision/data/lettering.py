"""Texts beside boxes, where they hide least."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

FONT = findfont("DejaVu Sans")  # matplotlib brings it along
LETTERS = 12  # pixels
MARGIN = 2  # pixels around a text
OVER_TEXT = 8.0  # a pixel of another text counts as so many of a box: what is under a text can still be guessed


def write_beside(
    picture: Image.Image, boxes: np.ndarray, texts: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> None:
    """Writes a text at each box into the picture: above it, below it, beside it or in it, where it hides least.

    Args:
        picture: RGB; it is written into.
        boxes: [K, 4], left, top, right, bottom in pixels. The first of them choose first.
        texts: one for each box.
        colours: of the ground of each text.
    """
    draw, font = ImageDraw.Draw(picture), ImageFont.truetype(FONT, LETTERS)
    ascent, descent = font.getmetrics()
    height = ascent + descent + MARGIN
    taken = np.zeros((0, 4))
    for box, text, colour in zip(boxes, texts, colours):
        width = math.ceil(draw.textlength(text, font=font)) + 2 * MARGIN
        places = _places(box, width, height, picture.size)
        hidden = [_shared(place, boxes) + OVER_TEXT * _shared(place, taken) for place in places]
        place = places[int(np.argmin(hidden))]
        taken = np.concatenate((taken, place[None]))
        draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colour)
        draw.text((place[0] + MARGIN, place[1]), text, fill=_readable_on(colour), font=font)


def _places(box: np.ndarray, width: int, height: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Where a text may stand, the usual place first, all of it in the picture if it is large enough."""
    left, top, right, bottom = box
    corners = (
        (left, top - height),
        (right - width, top - height),
        (left, bottom),
        (right - width, bottom),
        (right, top),
        (left - width, top),
        (left, top),
    )
    places = []
    for corner in corners:
        x, y = (_within(start, room, own) for start, room, own in zip(corner, size, (width, height)))
        places.append(np.array([x, y, x + width, y + height]))
    return places


def _within(start: float, room: int, own: int) -> int:
    """The nearest whole start from which `own` pixels end in the room; 0 where there are fewer."""
    return max(0, min(round(float(start)), room - own))


def _shared(place: np.ndarray, others: np.ndarray) -> float:
    """Pixels of a place that lie in others [K, 4], counted once for each."""
    sides = np.minimum(place[2:], others[:, 2:]) - np.maximum(place[:2], others[:, :2])
    return float(sides.clip(min=0).prod(1).sum())


def _readable_on(colour: tuple[int, int, int]) -> str:
    red, green, blue = colour
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else "white"
