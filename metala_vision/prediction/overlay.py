"""Predictions drawn into their pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from metala_vision.data.drawing import class_colour, classes_on, drawn, enlarged, rgb
from metala_vision.data.lettering import FONT

from .found import Prediction

LINE = 20  # pixels of a line of text
SIZE = 14  # of its letters


def overlay(pixels: np.ndarray, found: Prediction, names: Sequence[str]) -> Image.Image:
    """A picture with what was found in it, enlarged where it is small: boxes and masks, or areas, or a list of classes.

    Args:
        pixels: [height, width, channels] uint8.
        found: in this picture.
        names: of all classes, whose colours go by their order.
    """
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    if found.objects is not None:
        boxes = np.array([one.box for one in found.objects], np.float32).reshape(-1, 4)
        texts = [f"{one.name} {one.score:.2f}" for one in found.objects]
        masks = [one.mask for one in found.objects if one.mask is not None]
        labels = [list(names).index(one.name) + 1 for one in found.objects]
        return _picture(drawn(image, boxes, labels, texts, np.stack(masks) if masks else None))
    if found.areas is not None and found.class_map is not None:
        picture = _picture(classes_on(image, found.class_map, len(names)))
        lines = [(f"{name} {share:.1%}", class_colour(list(names).index(name))) for name, share in found.areas]
        return _listed(picture, lines)
    told = found.classes or ()
    return _listed(_picture(enlarged(rgb(image))), [(f"{name} {share:.1%}", None) for name, share in told])


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _listed(picture: Image.Image, lines: Sequence[tuple[str, tuple[int, int, int] | None]]) -> Image.Image:
    """The picture with lines of text below it, with a square of its colour before each that has one."""
    whole = Image.new("RGB", (picture.width, picture.height + LINE * len(lines) + 4), "white")
    whole.paste(picture)
    draw, font = ImageDraw.Draw(whole), ImageFont.truetype(FONT, SIZE)
    for i, (text, colour) in enumerate(lines):
        top = picture.height + 2 + LINE * i
        if colour is not None:
            draw.rectangle((6, top + 4, 18, top + 16), fill=colour)
        draw.text((6 if colour is None else 26, top + 1), text, fill="black", font=font)
    return whole
