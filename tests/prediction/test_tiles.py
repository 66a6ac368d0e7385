"""Tiles answer for every place once, and every object that fits into their overlap is found once, where it is."""

import numpy as np
import pytest
import torch

from metala_vision.prediction.detecting import Detecting
from metala_vision.prediction.tiles import tiles


@pytest.mark.parametrize(("height", "width", "side"), [(90, 120, 64), (64, 64, 64), (5, 700, 33), (257, 130, 32)])
def test_cores_cover_the_picture_once(height, width, side):
    found = tiles(height, width, side)
    covered, answered = np.zeros((height, width), int), np.zeros((height, width), int)
    for tile in found:
        assert (tile.bottom - tile.top, tile.right - tile.left) == (min(side, height), min(side, width))
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
        for y in range(height):
            for x in range(width):
                if tile.answers_for(x + 0.5, y + 0.5):
                    answered[y, x] += 1
                    assert tile.top <= y < tile.bottom
                    assert tile.left <= x < tile.right
    assert covered.min() >= 1
    assert (answered == 1).all()


def test_no_side_is_one_tile():
    (tile,) = tiles(30, 50, None)
    assert tile[:4] == (0, 0, 30, 50)


def squares(images: list[torch.Tensor]) -> list[dict]:
    """A detector of bright squares, each of a brightness of its own; it finds what is left of them at a border too."""
    found = []
    for image in images:
        values = [v for v in image[0].unique().tolist() if v > 0]
        places = [(image[0] == value).nonzero() for value in values]
        boxes = [[*p.min(0).values.flip(0).tolist(), *(p.max(0).values.flip(0) + 1).tolist()] for p in places]
        masks = torch.stack([image[0] == v for v in values])[:, None] if values else torch.zeros(0, 1, *image.shape[1:])
        found.append(
            dict(
                boxes=torch.tensor(boxes).reshape(-1, 4).float(),
                labels=torch.ones(len(values), dtype=torch.int64),
                scores=torch.tensor([round(value * 255) / 255 for value in values]),
                masks=masks.float(),
            )
        )
    return found


def test_objects_of_a_large_picture():
    """Catches duplicates in overlaps, objects cut at borders, boxes and masks in the pixels of a tile."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((300, 400, 3), np.uint8)
    wanted = {}
    for number in range(1, 60):
        size = int(rng.integers(3, 16))
        top, left = int(rng.integers(0, 300 - size)), int(rng.integers(0, 400 - size))
        if pixels[max(0, top - 1) : top + size + 1, max(0, left - 1) : left + size + 1].any():
            continue
        pixels[top : top + size, left : left + size] = 100 + number
        wanted[100 + number] = (left, top, left + size, top + size)
    finder = Detecting(squares, ["square"], 64, 0.39)
    (found,) = finder.find([finder.prepare(pixels)], batch=3)
    scores = [one.score for one in found["objects"]]
    assert scores == sorted(scores, reverse=True)
    assert {round(255 * one.score): one.box for one in found["objects"]} == wanted
    assert len(scores) == len(wanted) > 20
    for one in found["objects"]:
        assert (one.mask == (pixels[:, :, 0] == round(255 * one.score))).all()
    none = Detecting(squares, ["square"], 64, 1.0).find([finder.prepare(pixels)], batch=3)
    assert none == [dict(objects=[])]


def test_two_objects_of_one_tile_are_two():
    """Catches a choice of its own: how much two objects may overlap is the detector's to say."""

    def overlapping(images: list[torch.Tensor]) -> list[dict]:
        boxes = torch.tensor([[10.0, 10, 40, 40], [17.0, 10, 47, 40]])  # intersection over union 0.62
        one = dict(boxes=boxes, labels=torch.tensor([1, 1]), scores=torch.tensor([0.9, 0.8]))
        none = {key: value[:0] for key, value in one.items()}
        return [one if image[0, 0, 0] > 0.5 else none for image in images]

    pixels = np.zeros((300, 400, 3), np.uint8)
    pixels[0, 0] = 255
    for side in (None, 200):
        finder = Detecting(overlapping, ["square"], side, 0.1)
        (found,) = finder.find([finder.prepare(pixels)], batch=4)
        assert len(found["objects"]) == 2, side
