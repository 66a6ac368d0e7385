"""Images with a class for each pixel, and drawn shapes."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from metala_vision.data import MaskFolder, MaskTransform, SampleKey, ShapesDetection, ShapesSegmentation, collate_masks
from metala_vision.data.shapes import SHAPES, draw
from metala_vision.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Makes images/train and masks/train: folder({name: mask or None})."""

    def make(masks: dict) -> str:
        for part in ("images/train", "masks/train"):
            (tmp_path / part).mkdir(parents=True, exist_ok=True)
        for name, mask in masks.items():
            Image.fromarray(np.full((6, 8, 3), 9, np.uint8)).save(tmp_path / "images/train" / f"{name}.jpg")
            if mask is not None:
                Image.fromarray(mask).save(tmp_path / "masks/train" / f"{name}.png")
        return str(tmp_path)

    return make


def labels(value=1):
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 3:6] = value
    return mask


def test_folder(folder):
    data = MaskFolder(folder({"a": labels(2), "b": labels(255)}), "train", 3)
    assert data.classes == ("0", "1", "2")
    assert torch.equal(data[0]["mask"], torch.from_numpy(labels(2).astype(np.int64)))
    assert data[1]["mask"].max() == 255, "ignored"
    batch = collate_masks([data[0], data[1], {"error": "c"}])
    assert (len(batch["inputs"]), batch["indices"], batch["errors"]) == (2, [0, 1], ["c"])


def test_ade20k(folder):
    """0 is ignored, and 150 the last class."""
    data = MaskFolder(folder({"a": labels(150)}), "train", 150, zero_is_ignored=True)
    assert sorted(data[0]["mask"].unique().tolist()) == [149, 255]
    beyond = MaskFolder(folder({"a": labels(1).astype(np.uint16) * 256}), "train", 150, zero_is_ignored=True)
    assert "its labels run up to 256, expected at most 255" in beyond[0]["error"], "and not ignored as 255 is"
    sixteen = MaskFolder(folder({"a": labels(1).astype(np.uint16)}), "train", 2)
    assert sixteen[0]["mask"].max() == 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (labels(3), r"a.jpg: its mask has the labels 3, expected 0 to 2, or 255"),
        (np.zeros((6, 7), np.uint8), "a.jpg: it is 8x6 pixels and was annotated as 7x6"),
        (np.zeros((6, 8, 3), np.uint8), "it has mode RGB, expected grey or palette"),
        (np.full((6, 8), 300, np.uint16), "its labels run up to 300"),
    ],
)
def test_a_mask_that_does_not_fit_is_skipped_by_name(folder, mask, message):
    assert re.search(message, MaskFolder(folder({"a": mask}), "train", 3, max_share=1.0)[0]["error"])


def test_missing_masks(folder):
    root = folder({"a": labels(), "b": None})
    with pytest.raises(InputError, match="masks: 1 of 2 images in .* have no mask, the first: b.jpg"):
        MaskFolder(root, "train", 3)
    assert len(MaskFolder(root, "train", 3, max_share=0.5)) == 1


def test_folder_errors(folder, tmp_path):
    root = folder({})
    with pytest.raises(InputError, match="images: no image in"):
        MaskFolder(root, "train", 3)
    with pytest.raises(InputError, match="images: no folder .*images/val"):
        MaskFolder(root, "val", 3)
    with pytest.raises(InputError, match="masks: no folder .*labels"):
        MaskFolder(root, "train", 3, masks="labels")


def test_transform_moves_the_mask_with_the_image():
    transform = MaskTransform(
        [dict(type="HorizontalFlip", p=1.0), dict(type="PadIfNeeded", min_height=6, min_width=12, fill_mask=255)]
    )
    image = np.repeat(labels(1)[:, :, None] * 200, 3, 2)
    out, mask = transform(image, labels(1), 0)
    assert np.array_equal(out[..., 0] == 200, mask == 1)
    assert (mask == 255).sum() == 24


def test_drawings():
    """Masks that are not empty, boxes around them, and labels that are the same in both datasets."""
    boxes, pixels = ShapesDetection("val", images=20, size=64), ShapesSegmentation("val", images=20, size=64)
    assert boxes.classes == SHAPES
    assert pixels.classes[1:] == SHAPES
    kinds = set()
    for i in range(20):
        target, mask = boxes[i]["target"], pixels[i]["mask"]
        assert torch.equal(boxes[i]["image"], pixels[i]["image"])
        assert 1 <= len(target["boxes"]) <= 5
        assert target["masks"].sum(0).max() == 1, "visible parts do not overlap"
        expected = torch.zeros(64, 64, dtype=torch.int64)
        for (left, top, right, bottom), label, one in zip(target["boxes"].int(), target["labels"], target["masks"]):
            assert one[top:bottom, left:right].sum() == one.sum() > 0
            assert one[top].any()
            assert one[bottom - 1].any()
            expected[one > 0] = label
        assert torch.equal(mask, expected)
        kinds |= set(target["labels"].tolist())
    assert kinds == {1, 2, 3}


def test_drawings_are_reproducible_and_splits_differ():
    one, other = draw(3, 64), draw(3, 64)
    assert np.array_equal(one.image, other.image)
    train, val = ShapesDetection("train", images=3, size=64), ShapesDetection("val", images=3, size=64)
    assert not torch.equal(train[0]["image"], val[0]["image"])
    assert torch.equal(train[SampleKey(1, 9)]["image"], train[1]["image"]), "no transform, nothing random"


@pytest.mark.parametrize("options", [dict(images=0), dict(size=8), dict(most=0), dict(images=2.5)], ids=str)
def test_shapes_errors(options):
    with pytest.raises(InputError, match=f"^{next(iter(options))}: got"):
        ShapesSegmentation("train", **options)
