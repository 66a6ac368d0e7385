"""Boxes and masks from VOC and COCO files, broken ones among them, and what augmentation makes of them."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metala_vision.data import BoxTransform, CocoDetection, SampleKey, VOCDetection, collate_boxes
from metala_vision.errors import InputError

pytest.importorskip("pycocotools")
CLASSES = ("cat", "dog")


def picture(path, width=40, height=30, value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


def voc_object(name, box, difficult=0):
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


@pytest.fixture
def voc(tmp_path):
    """Makes a VOC folder: voc({name: content of its annotation}), all of them in the train split."""

    def make(annotations: dict[str, str]) -> str:
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        for name, content in annotations.items():
            picture(tmp_path / "JPEGImages" / f"{name}.jpg")
            size = "<size><width>40</width><height>30</height></size>"
            text = content if content.startswith("!") else f"<annotation>{size}{content}</annotation>"
            (tmp_path / "Annotations" / f"{name}.xml").write_text(text.removeprefix("!"))
        (tmp_path / "train.txt").write_text("\n".join(annotations))
        return str(tmp_path)

    return make


def good(name="a"):
    return {name: voc_object("cat", (1, 2, 11, 22)) + voc_object("dog", (5, 5, 25.5, 15))}


def test_voc(voc):
    data = VOCDetection(voc({**good(), "b": ""}), "train", CLASSES)
    assert len(data) == 2
    sample = data[0]
    assert sample["image"].shape == (3, 30, 40)
    assert sample["target"]["boxes"].tolist() == [[0, 1, 11, 22], [4, 4, 25.5, 15]], (
        "VOC counts from 1, and inclusively"
    )
    assert sample["target"]["labels"].tolist() == [1, 2]
    assert (sample["target"]["image_id"], sample["target"]["size"]) == (0, (30, 40))
    assert data[1]["target"]["boxes"].shape == (0, 4), "an image without objects stays: it teaches what is none"
    batch = collate_boxes([sample, data[1], {"error": "x.jpg: broken"}])
    assert (len(batch["inputs"]), len(batch["targets"]), batch["errors"]) == (2, 2, ["x.jpg: broken"])


def test_voc_names(voc):
    """A name may have blanks; a list of one class has 1 or -1 behind it."""
    folder = voc({"cell 1": good()["a"], "b": ""})
    names = Path(folder) / "train.txt"
    assert len(VOCDetection(folder, "train", CLASSES)) == 2
    names.write_text("cell 1\nb  -1\n")
    data = VOCDetection(folder, "train", CLASSES)
    assert [Path(name).stem for name in data.names] == ["cell 1", "b"]


def test_voc_corners(voc):
    """The whole image is (1, 1, 40, 30), and one pixel is an object."""
    folder = voc({"a": voc_object("cat", (1, 1, 40, 30)) + voc_object("dog", (7, 9, 7, 9))})
    assert VOCDetection(folder, "train", CLASSES)[0]["target"]["boxes"].tolist() == [[0, 0, 40, 30], [6, 8, 7, 9]]
    plain = VOCDetection(folder, "train", CLASSES, one_based=False)
    assert plain[0]["target"]["boxes"].tolist() == [[1, 1, 40, 30]]
    assert plain.troubles.counts() == {"degenerate boxes dropped": 1}


def test_boxes_that_enclose_nothing(voc, caplog):
    """Degenerate and outside ones are dropped, others are clipped; each kind is said once with its files."""
    wrong = (
        voc_object("cat", (10, 10, 9, 20))
        + voc_object("cat", (10, 20, 20, 10))
        + voc_object("cat", (45, 5, 60, 20))
        + voc_object("cat", (-20, -9, 10, 10))
        + voc_object("dog", ("nan", 5, 6, 20))
    )
    with caplog.at_level(logging.WARNING):
        data = VOCDetection(voc({**good(), "wrong": wrong}), "train", CLASSES)
    assert data.troubles.counts() == {
        "degenerate boxes dropped": 3,
        "boxes outside of their image dropped": 1,
        "boxes clipped to their image": 1,
    }
    assert "wrong.xml" in data.troubles.files["degenerate boxes dropped"][0]
    assert data[1]["target"]["boxes"].tolist() == [[0, 0, 10, 10]]


def test_voc_difficult(voc):
    folder = voc({"a": voc_object("cat", (1, 2, 11, 22), difficult=1) + voc_object("dog", (5, 5, 25, 15))})
    assert VOCDetection(folder, "train", CLASSES)[0]["target"]["labels"].tolist() == [2]
    assert VOCDetection(folder, "train", CLASSES, difficult="use")[0]["target"]["labels"].tolist() == [1, 2]
    (Path(folder) / "val.txt").write_text("a")
    target = VOCDetection(folder, "val", CLASSES)[0]["target"]
    assert target["labels"].tolist() == [1, 2]
    assert target["iscrowd"].tolist() == [True, False], "not counted against a detector"


def test_a_few_broken_annotations_are_left_out(voc):
    annotations = {**good(), "broken": "!<annotation><object>", "half": "<object><name>cat</name></object>"}
    folder = voc(annotations)
    data = VOCDetection(folder, "train", CLASSES, max_share=0.9)
    assert data.names == ("a",)
    assert data.troubles.counts() == {"annotation files that cannot be read, their images left out": 2}
    with pytest.raises(InputError, match=r"\(root\): 2 of the 3 annotation files of the train split.*broken.xml"):
        VOCDetection(folder, "train", CLASSES)


@pytest.mark.parametrize(
    ("annotations", "options", "message"),
    [
        ({"a": voc_object("cow", (1, 2, 11, 22))}, {}, r"classes: .*a.xml has an object 'cow', none of them"),
        ({"a": voc_object("dig", (1, 2, 11, 22))}, {}, r"classes: .*'dig', none of them \(did you mean dog\?\)"),
        ({"a": ""}, {}, r"VOCDetection \(train\): none of its 1 images has an object"),
        (good(), dict(split="val"), "names: no file .*val.txt or .*ImageSets/Main/val.txt for the val split"),
        (good(), dict(split="valid"), "split: got 'valid'"),
        (good(), dict(classes=()), r"classes: got \(\)"),
        (good(), dict(classes=("cat", "cat")), "classes: got"),
        (good(), dict(difficult="drop"), "difficult: got 'drop'"),
        (good(), dict(root="nowhere"), r"\(root\): no folder nowhere/JPEGImages"),
    ],
)
def test_voc_errors(voc, annotations, options, message):
    with pytest.raises(InputError, match=message):
        VOCDetection(**{**dict(root=voc(annotations), split="train", classes=CLASSES), **options})


SQUARE = [[2, 3, 12, 3, 12, 13, 2, 13]]


@pytest.fixture
def coco(tmp_path):
    """Makes a COCO folder out of annotations; category 7 is a dog, 3 a cat."""

    def make(annotations, **parts) -> str:
        for name in ("x.jpg", "y.jpg"):
            picture(tmp_path / "train2017" / name)
        content = dict(
            images=[dict(id=i, file_name=n, width=40, height=30) for i, n in ((50, "x.jpg"), (60, "y.jpg"))],
            annotations=annotations,
            categories=[dict(id=7, name="dog"), dict(id=3, name="cat")],
        )
        (tmp_path / "annotations").mkdir(exist_ok=True)
        text = json.dumps({**content, **parts})
        (tmp_path / "annotations" / "instances_train2017.json").write_text(text)
        return str(tmp_path)

    return make


def annotation(**parts):
    return {**dict(id=1, image_id=60, category_id=7, bbox=[2, 3, 10, 10], segmentation=SQUARE), **parts}


def test_coco(coco):
    data = CocoDetection(coco([annotation(), annotation(id=2, category_id=3, bbox=[20, 0, 5, 6])]), "train")
    assert data.classes == ("cat", "dog")
    assert data.categories == [3, 7], "what its own result files are written with"
    target = data[1]["target"]
    assert target["boxes"].tolist() == [[2, 3, 12, 13], [20, 0, 25, 6]]
    assert target["labels"].tolist() == [2, 1]
    assert target["image_id"] == 60
    assert "masks" not in target
    some = CocoDetection(coco([annotation(), annotation(category_id=3)]), "train", classes=["dog"])
    assert some[1]["target"]["labels"].tolist() == [1]


def test_coco_masks(coco):
    """Polygons, and run-length codes as lists and as strings, are the same square."""
    from pycocotools import mask as coder

    square = np.zeros((30, 40), np.uint8)
    square[3:13, 2:12] = 1
    packed = coder.encode(np.asfortranarray(square))
    flat = square.T.reshape(-1)
    runs = np.diff(np.flatnonzero(np.concatenate([[1], flat[1:] != flat[:-1], [1]]))).tolist()
    forms = [SQUARE, dict(size=[30, 40], counts=packed["counts"].decode()), dict(size=[30, 40], counts=runs)]
    data = CocoDetection(coco([annotation(id=i, segmentation=f) for i, f in enumerate(forms)]), "train", masks=True)
    masks = data[1]["target"]["masks"]
    assert masks.shape == (3, 30, 40)
    for mask in masks:
        assert torch.equal(mask, torch.from_numpy(square))
    assert data[0]["target"]["masks"].shape == (0, 30, 40)


def test_coco_crowds_and_missing_masks(coco):
    parts = [
        annotation(),
        annotation(id=2, segmentation=[]),
        annotation(id=3, iscrowd=1),
        annotation(id=4, bbox=[2, 3, 0, 10]),
    ]
    folder = Path(coco(parts))
    data = CocoDetection(folder, "train", masks=True)
    assert len(data[1]["target"]["boxes"]) == 1, "a crowd is not trained on, nor what has no mask"
    assert data.troubles.counts() == {"objects without a mask ignored": 1, "degenerate boxes dropped": 1}
    (folder / "annotations" / "instances_train2017.json").rename(folder / "annotations" / "instances_val2017.json")
    (folder / "train2017").rename(folder / "val2017")
    target = CocoDetection(folder, "val", masks=True)[1]["target"]
    assert target["iscrowd"].tolist() == [False, True, True], "what is found there is not counted against a detector"
    assert target["masks"][1].sum() == 100


def test_coco_broken_parts_of_a_mask(coco):
    """The whole parts stay."""
    data = CocoDetection(coco([annotation(segmentation=[*SQUARE, [1, 2, 3, 4], "x"])]), "train", masks=True)
    assert data[1]["target"]["masks"].sum() == 100
    assert data.troubles.counts() == {"polygons of fewer than three points dropped": 2}


def test_coco_categories_of_one_name(coco):
    """As exported by tools that make a category of a group: one class, and results by the id that is used."""
    categories = [dict(id=0, name="dog"), dict(id=3, name="cat"), dict(id=7, name="dog")]
    data = CocoDetection(coco([annotation(), annotation(category_id=3)], categories=categories), "train")
    assert data.classes == ("dog", "cat")
    assert data.categories == [7, 3]
    assert data[1]["target"]["labels"].tolist() == [1, 2]


def test_coco_areas(coco):
    """By which objects are small or large are those of the file, where it has them."""
    data = CocoDetection(coco([annotation(area=77.0), annotation()]), "train")
    assert data[1]["target"]["area"].tolist() == [77.0, 100.0]


@pytest.mark.parametrize(
    ("annotations", "parts", "options", "message"),
    [
        ([annotation(image_id=1)], {}, {}, "annotation 1 is of image 1, which the file does not have"),
        ([annotation(category_id=1)], {}, {}, "annotation 1 has category 1, expected one of 3, 7"),
        (
            [annotation(bbox=[1, 2])],
            {},
            {},
            r"y.jpg: annotation 1 has the bbox \[1, 2\], expected four numbers",
        ),
        ([annotation(segmentation=[])], {}, dict(masks=True), "masks: none of the objects"),
        ([annotation()], dict(images="x"), {}, "'images' is no list of objects with id, file_name"),
        ([annotation()], dict(images=[]), {}, "has no images"),
        ([annotation()], dict(categories=[{}]), {}, "'categories' is no list of objects with id, name"),
        ([annotation()], {}, dict(classes=["cow"]), "classes: .* has no category cow"),
        ([annotation()], {}, dict(annotations="none.json"), "annotations: no file .*none.json"),
        ([annotation()], {}, dict(images="none"), "images: no folder .*none"),
        ([], {}, {}, "none of its 2 images has an object"),
    ],
)
def test_coco_errors(coco, annotations, parts, options, message):
    with pytest.raises(InputError, match=message):
        CocoDetection(coco(annotations, **parts), "train", **options)


def test_a_torn_file(coco, tmp_path):
    folder = coco([annotation()])
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="annotations: .*instances_train2017.json is no whole JSON file"):
        CocoDetection(folder, "train")


def test_an_image_that_is_not_there(coco, tmp_path):
    """At once, with what lies nearest; a small share is reported when it is loaded."""
    folder = coco([annotation()])
    images = tmp_path / "train2017"
    (images / "y.jpg").rename(images / "y.png")
    message = "images: 1 of the 2 pictures that the annotations name are not there, more than max_share=0.01; the first"
    with pytest.raises(InputError, match=f"{message}.*y.jpg. There is y.png, with another suffix"):
        CocoDetection(folder, "train")
    assert "y.jpg" in CocoDetection(folder, "train", max_share=0.5)[1]["error"]
    names = [dict(id=i, file_name=f"train2017/{n}", width=40, height=30) for i, n in ((50, "x.jpg"), (60, "y.png"))]
    with pytest.raises(InputError, match=rf"The names begin with train2017/ already: give .* {re.escape(folder)}$"):
        CocoDetection(coco([annotation()], images=names), "train")
    names = [{**image, "file_name": image["file_name"].replace("train2017", "old")} for image in names]
    with pytest.raises(InputError, match="x.jpg: the names have folders before them that are not there"):
        CocoDetection(coco([annotation()], images=names), "train")


def test_a_missing_image_of_voc(voc):
    folder = voc({**good(), "b": ""})
    (Path(folder) / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(InputError, match="root: 1 of the 2 pictures that the annotations name are not there"):
        VOCDetection(folder, "train", CLASSES)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (
            [[20, 20, 30, 25]] * 11,
            "11 of 14 boxes do not fit their pictures .0 enclose nothing or lie outside, 11 ",
        ),
        ([[50, 40, 5, 5]] * 11, "11 of 14 boxes do not fit their pictures .11 enclose nothing or lie outside, 0 reach"),
        (
            [[0.2, 0.3, 0.5, 0.5]] * 11,
            "11 of 14 boxes lie within one pixel of the upper left corner; they look like ",
        ),
        ([[20, 20, 30, 25]] * 10, None),
        ([[2, 2, 30, 25]] * 11, None),
    ],
    ids=["two corners", "resized", "shares", "single mistakes", "sound"],
)
def test_boxes_of_another_form(coco, boxes, message):
    """Catches a detector that is trained for hours on boxes that are none; few mistakes are counted alone."""
    sound = [annotation(id=100 + i) for i in range(3)]
    folder = coco([*sound, *(annotation(id=i, bbox=box) for i, box in enumerate(boxes))])
    if message is None:
        CocoDetection(folder, "train")
        return
    with pytest.raises(InputError, match=message):
        CocoDetection(folder, "train")
    if "corner" not in message:
        CocoDetection(folder, "train", max_misfit=1.0)


def test_nothing_to_measure(coco):
    """Catches a validation without any object, whose mAP is no number."""
    with pytest.raises(InputError, match="none of its 2 images has an object, so there is nothing to learn from"):
        CocoDetection(coco([]), "train")
    files = dict(annotations="annotations/instances_train2017.json", images="train2017")
    with pytest.raises(InputError, match="val.: none of its 2 images has an object, so there is nothing to measure"):
        CocoDetection(coco([]), "val", **files)


def test_ids_of_another_kind_are_shown_as_they_are(coco):
    with pytest.raises(InputError, match="annotation 1 is of image '60', which the file does not have; remove it, or"):
        CocoDetection(coco([annotation(image_id="60")]), "train")


def test_transform_moves_boxes_and_masks_together():
    transform = BoxTransform(
        [dict(type="HorizontalFlip", p=1.0), dict(type="Crop", x_min=0, y_min=0, x_max=30, y_max=20)]
    )
    masks = np.zeros((3, 30, 40), np.uint8)
    boxes = np.array([[2, 3, 12, 13], [25, 5, 35, 15], [1, 25, 5, 29]], np.float32)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int)):
        mask[top:bottom, left:right] = 1
    image = np.zeros((30, 40, 3), np.uint8)
    image[masks[1] > 0] = 200
    out, moved, cut, kept = transform(image, boxes, masks, 0)
    assert out.shape == (20, 30, 3)
    assert kept.tolist() == [0, 1], "the third is below the crop"
    assert moved.tolist() == [[28, 3, 30, 13], [5, 5, 15, 15]]
    assert np.array_equal(out[..., 0] > 0, cut[1] > 0), "what the mask covers is what was painted"
    alone = transform(image, boxes, None, 0)
    assert alone[2] is None
    assert alone[1].tolist() == moved.tolist()
    empty = transform(image, np.zeros((0, 4), np.float32), np.zeros((0, 30, 40), np.uint8), 0)
    assert empty[1].shape == (0, 4)
    assert empty[2].shape == (0, 20, 30)


def test_the_seed_decides(coco):
    jitter = dict(type="BoxTransform", transforms=[dict(type="Affine", translate_percent=(-0.2, 0.2), p=1.0)])
    data = CocoDetection(coco([annotation()]), "train", transform=jitter)
    first, again, other = (data[SampleKey(1, seed)]["target"]["boxes"] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_unknown_transforms():
    with pytest.raises(InputError, match="unknown albumentation 'HorizontalFlop'.*did you mean HorizontalFlip"):
        BoxTransform([dict(type="HorizontalFlop")])
    with pytest.raises(InputError, match="transforms: HorizontalFlip"):
        BoxTransform([dict(type="HorizontalFlip", prob=1.0)])
    with pytest.raises(InputError, match="min_visibility: got 2"):
        BoxTransform([], min_visibility=2)
