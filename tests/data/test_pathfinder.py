"""Pathfinder: labels are told from the pictures alone, and distances between discs tell nothing."""

import re

import cv2
import numpy as np
import pytest

from metala_vision.data import Pathfinder, PixelSequence
from metala_vision.errors import InputError


def discs_of(picture: np.ndarray) -> np.ndarray:
    """Centres of what is left when everything thinner than a disc is worn away."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    count, _, _, centres = cv2.connectedComponentsWithStats(cv2.erode((picture > 127).astype(np.uint8), kernel))
    assert count == 3, "the ground and two discs"
    return centres[1:]


@pytest.mark.parametrize(("dashes", "distractors"), [(6, 4), (14, 2), (3, 0)])
def test_the_label_is_what_the_picture_shows(dashes, distractors):
    """Catches a wrong label, curves that touch and dashes too far apart: dashes are joined, and discs looked up."""
    data = Pathfinder("train", 40, size=110, dashes=dashes, distractors=distractors, step=8.0, seed=3)
    join = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    for i in range(len(data)):
        picture = data.load(i)[..., 0]
        (ax, ay), (bx, by) = discs_of(picture).round().astype(int)
        count, parts = cv2.connectedComponents(cv2.dilate((picture > 127).astype(np.uint8), join))
        assert 3 <= count <= 3 + distractors, "the ground, two long curves, short ones"
        assert (parts[ay, ax] == parts[by, bx]) == bool(data[i]["label"])


def test_distances_tell_nothing():
    """By chance, the largest gap between the distributions of two classes is 0.14 in one of a thousand cases."""
    data = Pathfinder("train", 800, size=110, step=8.0, distractors=0)
    distances = np.array([np.hypot(*np.diff(discs_of(data.load(i)[..., 0]), axis=0)[0]) for i in range(len(data))])
    apart, connected = (np.sort(distances[data.labels == label]) for label in (0, 1))
    at = np.sort(distances)
    gap = np.abs(np.searchsorted(apart, at) / len(apart) - np.searchsorted(connected, at) / len(connected))
    assert gap.max() < 0.14


def test_pictures_are_a_function_of_seed_split_and_index():
    data = Pathfinder("train", 10, seed=1)
    assert data[3]["image"].shape == (1, 32, 32)
    assert (data.load(3) == Pathfinder("train", 20, seed=1).load(3)).all()
    others = [Pathfinder("train", 10, seed=2).load(3), Pathfinder("val", 10, seed=1).load(3), data.load(5)]
    assert all((data.load(3) != other).any() for other in others)
    assert data.labels.mean() == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(images=1), "at least 2 images"),
        (dict(size=32.0), "expected integers"),
        (dict(dashes=2), "3 dashes"),
        (dict(step="3"), "a step of '3', expected"),
        (dict(step=1.0), "a step from 2 to an eighth of the size"),
        (dict(dashes=60), "have no room in 32 pixels at a step of 2.5; expected at most"),
        (dict(distractors=-1), "0 or more"),
        (dict(split="dev"), "split"),
    ],
)
def test_what_does_not_fit(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Pathfinder(**(dict(split="train") | arguments))


def test_as_many_dashes_as_are_admitted_can_be_drawn():
    with pytest.raises(InputError) as error:
        Pathfinder("train", dashes=60)
    most = int(re.search(r"at most (\d+) dashes", str(error.value))[1])
    assert Pathfinder("train", dashes=most, distractors=0).load(0).any()


def test_pixels_follow_in_raster_order():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    flat = PixelSequence()(image)
    assert flat.shape == (1, 8, 3)
    assert flat[0, 5].tolist() == image[1, 1].tolist()
    crop = PixelSequence(dict(type="EvalTransform", img_size=2, crop_ratio=1.0))(image)
    assert crop.shape == (1, 4, 3)
    with pytest.raises(InputError, match="no img_size to change"):
        PixelSequence().at(64)
