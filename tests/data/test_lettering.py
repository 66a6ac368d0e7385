"""Texts beside boxes: all in the picture, none over another where there is room, the objects free."""

import numpy as np
import pytest
import torch
from PIL import Image

from metala_vision.data.drawing import drawn
from metala_vision.data.lettering import write_beside

SIDE = 200


def written(boxes, texts, size=(SIDE, SIDE)):
    """Where the ground of each text, of a colour of its own, is in a white picture."""
    picture = Image.new("RGB", size, (255, 255, 254))
    colours = [(10 + i, 0, 200) for i in range(len(boxes))]
    write_beside(picture, np.array(boxes, np.float32).reshape(-1, 4), texts, colours)
    pixels = np.array(picture)
    return [(pixels == colour).all(2) for colour in colours], pixels


@pytest.mark.parametrize(
    "box",
    [
        (80, 80, 120, 120),
        (0, 0, 40, 40),
        (160, 0, 200, 40),
        (0, 160, 40, 200),
        (160, 160, 200, 200),
        (-20, 90, 10, 120),
    ],
)
def test_a_text_leaves_its_object_free_and_is_whole(box):
    (ground,), pixels = written([box], ["object 0.50"])
    ((whole,), _) = written([(80, 80, 120, 120)], ["object 0.50"])
    assert ground.sum() == whole.sum() > 500
    left, top, right, bottom = (max(0, x) for x in box)
    assert (pixels[top + 1 : bottom, left + 1 : right] == (255, 255, 254)).all()


def test_texts_of_one_place_stand_apart():
    boxes = [(80, 80, 140, 120), (80, 80, 140, 120), (82, 81, 141, 121), (80, 80, 140, 120)]
    grounds, _ = written(boxes, ["object 0.50"] * 4)
    assert len({int(ground.sum()) for ground in grounds}) == 1


def test_a_box_as_large_as_the_picture_has_its_text_in_it():
    (ground,), _ = written([(0, 0, SIDE, SIDE)], ["object 0.50"])
    assert ground.sum() > 500


@pytest.mark.parametrize("size", [(12, 200), (200, 6), (1, 1)])
def test_a_picture_smaller_than_a_text(size):
    written([(0, 0, *size)], ["an object of a long name 0.50"], size)


def test_objects_are_drawn_where_they_are():
    image = np.full((3, 240, 480), 90, np.uint8)  # as large as is drawn without being enlarged
    picture = drawn(torch.from_numpy(image), np.array([[100.0, 60, 180, 140]]), [1], ["cell 0.90"], None).numpy()
    changed = np.argwhere((picture != 90).any(0))
    assert changed[:, 0].max() in (140, 141)
    assert changed[:, 1].min() in (99, 100)
    assert (picture[:, 70:130, 110:170] == 90).all()
