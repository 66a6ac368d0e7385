"""Imagenette: its two layouts, the names of its classes, and what is said where it cannot be had."""

import numpy as np
import pytest
from PIL import Image

from metala_vision.data import Imagenette
from metala_vision.data.imagenette import ARCHIVE, CLASSES
from metala_vision.errors import InputError


@pytest.fixture
def imagenette(tmp_path):
    for split, number in (("train", 6), ("val", 3)):
        for wnid in CLASSES:
            (tmp_path / ARCHIVE / split / wnid).mkdir(parents=True)
            for i in range(number):
                pixels = np.full((20, 24, 3), 20 * i, np.uint8)
                Image.fromarray(pixels).save(tmp_path / ARCHIVE / split / wnid / f"{i}.JPEG")
    return tmp_path


def test_both_layouts_have_names(imagenette):
    """Catches the archive beside its own folder, and WordNet ids in every table."""
    for root in (imagenette, imagenette / ARCHIVE):
        parts = {split: Imagenette(str(root), split, download=False) for split in ("train", "val", "test")}
        assert {split: len(data) for split, data in parts.items()} == {"train": 60, "val": 30, "test": 30}
        assert parts["test"].classes[:2] == ("tench", "English springer")
        assert parts["test"].classes[-1] == "parachute"
    held = Imagenette(str(imagenette), "val", holdout=0.17, download=False)
    assert len(held) == 10


def test_without_data_and_network(tmp_path):
    with pytest.raises(InputError, match=rf"no Imagenette in .*; without one, unpack {ARCHIVE}.tgz there"):
        Imagenette(str(tmp_path), "train", download=False)
