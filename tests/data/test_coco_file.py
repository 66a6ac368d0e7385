"""COCO's files that say something twice, and masks that are not of their image."""

import json

import numpy as np
import pytest
from photographs import HEIGHT, RED, WIDTH, photograph, red_box, shown, stored

from metala_vision.data import CocoDetection
from metala_vision.data.rle import encode, runs
from metala_vision.errors import InputError

pytest.importorskip("pycocotools")
SHOWN = (HEIGHT, WIDTH)
LEFT, TOP, RIGHT, BOTTOM = RED
POLYGON = [LEFT, TOP, RIGHT, TOP, RIGHT, BOTTOM, LEFT, BOTTOM]
MASK = np.zeros(SHOWN, np.uint8)
MASK[TOP:BOTTOM, LEFT:RIGHT] = 1


def image(**parts):
    return dict(id=0, file_name="a.jpg", height=HEIGHT, width=WIDTH) | parts


def annotation(**parts):
    box = [LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP]
    return dict(id=1, image_id=0, category_id=1, bbox=box, segmentation=[POLYGON]) | parts


@pytest.fixture
def read(tmp_path):
    """read(images, annotations) is the dataset of a file, over photographs that are stored sideways."""

    def make(images, annotations, masks=True, categories=(dict(id=1, name="red"),)) -> CocoDetection:
        for one in images:
            photograph(tmp_path / "train" / one["file_name"], 6)
        content = dict(images=images, annotations=annotations, categories=list(categories))
        (tmp_path / "train.json").write_text(json.dumps(content))
        return CocoDetection(str(tmp_path), "train", annotations="{split}.json", images="{split}", masks=masks)

    return make


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([image(), image(file_name="b.jpg")], "a.jpg and b.jpg both have the image id 0, and nothing says which"),
        (
            [image(), image(id=7)],
            "the images 0 and 7 are both a.jpg; an object of one would be background in the other",
        ),
    ],
)
def test_images_that_are_there_twice(read, images, message):
    """Catches objects that two images share because of one id, and those that an image lacks because of two."""
    with pytest.raises(InputError, match=message):
        read(images, [annotation()])


def test_categories_of_one_id(read):
    """Catches objects that are called by the name of the last category of their id."""
    with pytest.raises(InputError, match="'red' and 'blue' both have the category id 1"):
        read([image()], [annotation()], categories=[dict(id=1, name="red"), dict(id=1, name="blue")])


def test_entries_that_are_there_twice(read):
    """Catches files that were joined with themselves: each object would count twice."""
    data = read([image(), image()], [annotation(), annotation(), annotation(bbox=[0, 0, 9, 9])])
    assert len(data) == 1
    assert len(data[0]["target"]["boxes"]) == 2
    assert data.troubles.counts() == {
        "image entries dropped that are there twice": 1,
        "annotations dropped that are there twice": 1,
        "annotations with an id that another one has": 1,
    }


def code(mask, **parts):
    packed = encode(mask[None])[0]
    return dict(size=list(mask.shape), counts=packed["counts"].decode()) | parts


def test_codes_of_another_size(read):
    """Catches a mask that ends a worker, as it cannot be stacked with the others."""
    sideways = code(np.ascontiguousarray(MASK.T))
    data = read([image()], [annotation(), annotation(id=2, segmentation=sideways)])
    kind = "objects with a mask of another size than their image ignored"
    assert data.troubles.files == {kind: ["a.jpg (mask 64x48, image 48x64)"]}
    assert np.array_equal(data[0]["target"]["masks"].numpy(), MASK[None])
    with pytest.raises(
        InputError, match=r"masks: none of the objects .*: 1 objects .*as a.jpg \(mask 64x48, image 48x64"
    ):
        read([image()], [annotation(segmentation=sideways)])


def test_codes_state_the_size_where_the_image_does_not(read):
    """Catches a picture that is turned although its masks are of the stored pixels."""
    plain = dict(id=0, file_name="a.jpg")
    box = red_box(stored(shown(), 6).transpose(2, 0, 1))
    sensor = np.ascontiguousarray(stored(MASK, 6))
    bbox = [int(box[0]), int(box[1]), int(box[2] - box[0]), int(box[3] - box[1])]
    sample = read([plain], [annotation(bbox=bbox, segmentation=code(sensor))])[0]
    assert red_box(sample["image"]) == box == sample["target"]["boxes"][0].int().tolist()
    assert np.array_equal(sample["target"]["masks"][0].numpy(), sensor)
    sample = read([plain], [annotation(segmentation=code(MASK))])[0]
    assert red_box(sample["image"]) == list(RED)


@pytest.mark.parametrize(
    "counts",
    ["", "zz", "0", "é", [10, 5], [-5, HEIGHT * WIDTH + 5], [HEIGHT * WIDTH + 1], ["a"], [0.5], 7, [2**70]],
    ids=str,
)
def test_codes_that_do_not_fill_their_mask(read, counts):
    """Catches masks of what was in memory: pycocotools leaves the rest as it finds it."""
    broken = dict(size=list(SHOWN), counts=counts)
    data = read([image()], [annotation(), annotation(id=2, segmentation=broken)])
    assert data.troubles.counts() == {"objects with a run-length code that does not fill its mask ignored": 1}
    assert len(data[0]["target"]["masks"]) == 1


def test_runs_are_those_of_pycocotools():
    """Catches a count that is read otherwise than it was written: long runs, short ones, and those that shrink."""
    rng = np.random.default_rng(0)
    for share in (0.0, 0.001, 0.1, 0.5, 1.0):
        for height, width in ((1, 1), (7, 9), (300, 400)):
            mask = (rng.random((height, width)) < share).astype(np.uint8)
            flat = mask.T.reshape(-1)
            ends = np.flatnonzero(np.diff(flat)) + 1
            expected = np.diff(np.concatenate([[0] * (1 + int(flat[0])), ends, [flat.size]]))
            assert np.array_equal(runs(code(mask)["counts"]), expected)


def test_polygons_beyond_their_image(read):
    """Catches masks of nothing, coordinates that fill the memory, and what is no number."""
    beyond = [LEFT, TOP, RIGHT, TOP, RIGHT, 2 * HEIGHT, LEFT, 2 * HEIGHT]
    outside = [x + WIDTH for x in POLYGON]
    far = [1e9 * x for x in POLYGON]
    parts = [POLYGON, outside, far]
    objects = [[*parts, [1, 2, "x", 3, 4, 5]], [beyond], [outside], [[*POLYGON[:-1], float("nan")]]]
    data = read([image()], [annotation(id=i, segmentation=part) for i, part in enumerate(objects)])
    assert data.troubles.counts() == {
        "polygons of fewer than three points dropped": 1,
        "polygons outside of their image dropped": 3,
        "polygons clipped to their image": 1,
        "objects with a mask outside of their image ignored": 1,
        "objects without a mask ignored": 1,
    }
    masks = data[0]["target"]["masks"].numpy()
    assert len(masks) == 2
    assert np.array_equal(masks[0], MASK)
    assert masks[1, TOP:, LEFT:RIGHT].all()
    assert masks[1].sum() == masks[1, TOP:, LEFT:RIGHT].sum()
