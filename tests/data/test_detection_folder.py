"""Boxes and masks of one's own in every layout that is known, and what is said of the others."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metala_vision.data import CocoDetection, MaskFolder, VOCDetection, detection_folder
from metala_vision.data.detection_folder import OF_A_SPLIT, OF_ALL
from metala_vision.errors import InputError

pytest.importorskip("pycocotools")


def picture(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (40, 30)).save(path)


def coco(root: Path, annotations: str, images: str, names: list[str]) -> None:
    """One box of a category for each image, as an annotation tool writes them."""
    content = dict(
        images=[dict(id=i, file_name=name, width=40, height=30) for i, name in enumerate(names, 7)],
        annotations=[
            dict(id=i, image_id=i, category_id=2, bbox=[i, 2, 10, 10], area=100, iscrowd=0)
            for i in range(7, 7 + len(names))
        ],
        categories=[dict(id=2, name="cat"), dict(id=5, name="dog")],
    )
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    (root / annotations).write_text(json.dumps(content))
    for name in names:
        picture(root / images / name)


def voc(root: Path, names: list[str], lists: dict[str, list[str]]) -> None:
    (root / "Annotations").mkdir()
    for i, name in enumerate(names):
        picture(root / "JPEGImages" / f"{name}.jpg")
        label = ("dog", "cat", "ape")[i % 3]
        box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        content = f"<annotation><object><name>{label}</name>{box}</object></annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(content)
    for file, listed in lists.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("\n".join(listed))


@pytest.mark.parametrize("called", [("train", "val"), ("train2017", "val2017"), ("train", "valid")])
@pytest.mark.parametrize("layout", OF_A_SPLIT)
def test_coco_in_splits(tmp_path, layout, called):
    """Catches a layout whose splits are mixed up, and a test split that is asked for where there is none."""
    places = [[part.format(name=name) for part in layout] for name in called]
    coco(tmp_path, *places[0], ["a.jpg", "b.jpg"])
    coco(tmp_path, *places[1], ["c.jpg"])
    found = {split: detection_folder(str(tmp_path), split) for split in ("train", "val", "test")}
    assert {split: data.names for split, data in found.items()} == {
        "train": ("a.jpg", "b.jpg"),
        "val": ("c.jpg",),
        "test": ("c.jpg",),
    }
    assert isinstance(found["train"], CocoDetection)
    assert found["test"].split == "test"
    assert found["train"].classes == ("cat", "dog")
    assert found["train"][1]["target"]["boxes"].tolist() == [[8, 2, 18, 12]]


@pytest.mark.parametrize("layout", OF_ALL)
def test_coco_in_one_file(tmp_path, layout):
    """Catches an image that is both trained on and validated on, and boxes that go to other images."""
    names = [f"{i}.jpg" for i in range(20)]
    coco(tmp_path, *layout, names)
    train, val, test = (detection_folder(str(tmp_path), split, holdout=0.2) for split in ("train", "val", "test"))
    assert (len(train), len(val), val.names) == (16, 4, test.names)
    assert sorted(train.names + val.names) == sorted(names)
    for data in (train, val):
        lefts = [data[i]["target"]["boxes"][0, 0].item() for i in range(len(data))]
        assert lefts == [7 + int(name.removesuffix(".jpg")) for name in data.names]
        assert [data.image_id(i) for i in range(len(data))] == lefts


@pytest.mark.parametrize("place", ["", "ImageSets/Main/"])
def test_voc(tmp_path, place):
    """Catches class names that one split lacks and another has, which would shift the labels."""
    voc(tmp_path, ["a", "b", "c"], {f"{place}train.txt": ["a", "b"], f"{place}val.txt": ["c"]})
    train, val, test = (detection_folder(str(tmp_path), split) for split in ("train", "val", "test"))
    assert isinstance(train, VOCDetection)
    assert (train.names, val.names, test.names) == (("a", "b"), ("c",), ("c",))
    assert train.classes == val.classes == ("ape", "cat", "dog")
    assert train[0]["target"]["labels"].tolist() == [3]
    chosen = detection_folder(str(tmp_path), "val", classes=("dog", "cat", "ape"), one_based=False)
    assert chosen[0]["target"]["labels"].tolist() == [3]
    assert chosen[0]["target"]["boxes"].tolist() == [[2, 2, 9, 9]]


def test_voc_without_lists(tmp_path):
    """Catches a set without splits that is refused, or whose parts overlap."""
    names = [f"n{i}" for i in range(10)]
    voc(tmp_path, names, {})
    train, val = (detection_folder(str(tmp_path), split, holdout=0.3) for split in ("train", "val"))
    assert (len(train), len(val)) == (7, 3)
    assert sorted(train.names + val.names) == names


def test_what_cannot_be_found_is_said(tmp_path):
    """Catches an error that leaves people to the source: what was looked for, and what is there."""
    with pytest.raises(InputError, match="--data-root: no folder"):
        detection_folder(str(tmp_path / "nowhere"), "train")
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("")
    with pytest.raises(InputError, match="looked for JPEGImages .*train/_annotations.coco.*It has data.yaml, label"):
        detection_folder(str(tmp_path), "train")
    coco(tmp_path, "train.json", "images", ["a.jpg"])
    with pytest.raises(InputError, match="no boxes for the val split"):
        detection_folder(str(tmp_path), "val")
    voc(tmp_path, ["a"], {"train.txt": ["a"]})
    with pytest.raises(InputError, match="names: no file .*val.txt"):
        detection_folder(str(tmp_path), "val")
    with pytest.raises(InputError, match="masks: .* has VOC's form"):
        detection_folder(str(tmp_path), "train", masks=True)
    with pytest.raises(InputError, match="VOCDetection, which reads this folder, has no 'one_base' .did you mean"):
        detection_folder(str(tmp_path), "train", one_base=False)
    with pytest.raises(InputError, match=r"holdout: got 0.7"):
        detection_folder(str(tmp_path), "train", holdout=0.7)


def test_masks_with_and_without_splits(tmp_path):
    """Catches an image that is trained on and validated on, and a test split that is asked for where there is none."""
    for i in range(10):
        picture(tmp_path / "plain" / "images" / f"{i}.jpg")
        picture(tmp_path / "plain" / "masks" / f"{i}.png", "L")
        split = "val" if i < 3 else "train"
        picture(tmp_path / "split" / "images" / split / f"{i}.jpg")
        picture(tmp_path / "split" / "masks" / split / f"{i}.png", "L")
    for name in ("plain", "split"):
        train, val, test = (MaskFolder(str(tmp_path / name), s, 2, holdout=0.3) for s in ("train", "val", "test"))
        stems = [[Path(file).stem for file in data.names] for data in (train, val)]
        assert (len(train), len(val), test.names) == (7, 3, val.names)
        assert sorted(stems[0] + stems[1]) == sorted(map(str, range(10)))
        assert np.array_equal(train[0]["mask"], np.zeros((30, 40)))
