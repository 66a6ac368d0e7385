"""The sizes that annotations state decide how a picture is read, and which are refused."""

import json
import re

import numpy as np
import pytest
from photographs import HEIGHT, RED, SIDEWAYS, TURNED, WIDTH, photograph, red_box, shown, stored
from PIL import Image

from metala_vision.data import CocoDetection, MaskFolder, VOCDetection
from metala_vision.data.sizes import LOOKED_AT, REFUSED
from metala_vision.errors import InputError

SHOWN = (HEIGHT, WIDTH)


def coco(root, sizes, box=RED, segmentation=None):
    """A COCO file for the pictures of root/train, each annotated at a size (height, width), or at none."""
    left, top, right, bottom = map(int, box)
    images, annotations = [], []
    for i, (name, size) in enumerate(sizes.items()):
        images.append(dict(id=i, file_name=name) | (dict(height=size[0], width=size[1]) if size else {}))
        one = dict(id=i, image_id=i, category_id=1, bbox=[left, top, right - left, bottom - top])
        annotations.append(one | (dict(segmentation=segmentation) if segmentation else {}))
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name="red")])
    (root / "train.json").write_text(json.dumps(content))
    return dict(root=str(root), split="train", annotations="{split}.json", images="{split}")


def voc(root, sizes, box=RED, filename="{name}"):
    """The same in VOC's form, with pictures in root/JPEGImages; its boxes count from 1."""
    left, top, right, bottom = map(int, box)
    corners = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    (root / "Annotations").mkdir()
    for name, size in sizes.items():
        stated = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>" if size else ""
        (root / "Annotations" / name).with_suffix(".xml").write_text(
            f"<annotation><filename>{filename.format(name=name)}</filename>{stated}<object><name>red</name>"
            f"<bndbox>{corners}</bndbox></object></annotation>"
        )
    (root / "train.txt").write_text("\n".join(name.partition(".")[0] for name in sizes))
    return dict(root=str(root), split="train", classes=["red"])


FORMS = [(CocoDetection, coco, "train"), (VOCDetection, voc, "JPEGImages")]
forms = pytest.mark.parametrize(("kind", "write", "folder"), FORMS, ids=["coco", "voc"])


def box_of(sample) -> list[int]:
    return sample["target"]["boxes"][0].int().tolist()


@forms
@pytest.mark.parametrize("orientation", TURNED)
def test_boxes_of_the_shown_picture(tmp_path, kind, write, folder, orientation):
    """Catches boxes that are clipped to a wrong place: 48x64 is stated, and 64x48 stored."""
    photograph(tmp_path / folder / "a.jpg", orientation)
    for stated in (SHOWN, None, (0, 0)):
        root = tmp_path / str(stated)
        root.mkdir()
        (root / folder).symlink_to(tmp_path / folder)
        data = kind(**write(root, {"a.jpg": stated}))
        assert data[0]["image"].shape == (3, *SHOWN)
        assert box_of(data[0]) == list(RED) == red_box(data[0]["image"])
        assert data.troubles.counts() == {}


@forms
@pytest.mark.parametrize("orientation", SIDEWAYS)
def test_boxes_of_the_stored_picture(tmp_path, kind, write, folder, orientation):
    """Catches boxes that a script made of the stored pixels, over a picture that is turned."""
    photograph(tmp_path / folder / "a.jpg", orientation)
    box = red_box(stored(shown(), orientation).transpose(2, 0, 1))
    data = kind(**write(tmp_path, {"a.jpg": SHOWN[::-1]}, box))
    assert data[0]["image"].shape == (3, *SHOWN[::-1])
    assert box_of(data[0]) == box == red_box(data[0]["image"])


@forms
def test_where_both_sizes_fit(tmp_path, kind, write, folder):
    """Catches square pictures, and those upside down, that are not turned as the tools do, or as it was asked for."""
    square = shown(64, 64)
    photograph(tmp_path / folder / "a.jpg", 6, square)
    photograph(tmp_path / folder / "b.jpg", 3)
    arguments = write(tmp_path, {"a.jpg": (64, 64), "b.jpg": SHOWN})
    for sample in kind(**arguments):
        assert red_box(sample["image"]) == list(RED) == box_of(sample)
    plain = kind(**arguments, orientation=False)
    assert red_box(plain[0]["image"]) == red_box(stored(square, 6).transpose(2, 0, 1))
    assert red_box(plain[1]["image"]) == red_box(stored(shown(), 3).transpose(2, 0, 1))


@forms
@pytest.mark.parametrize("orientation", [1, 6])
def test_resized_pictures(tmp_path, kind, write, folder, orientation):
    """Catches pictures that somebody resized, and not their boxes: 800x600 is stated, and 48x64 there."""
    photograph(tmp_path / folder / "a.jpg", orientation)
    also = r" \(64x48 as stored\)" if orientation == 6 else ""
    found = rf"a.jpg: it is 48x64 pixels{also} and was annotated as 800x600"
    arguments = write(tmp_path, {"a.jpg": (600, 800)})
    message = rf"1 of 1 pictures looked at are not of the size they were annotated at, more than .*: .*{found}. Resize"
    with pytest.raises(InputError, match=message):
        kind(**arguments)
    data = kind(**arguments, max_share=1.0)
    assert data.troubles.counts() == {REFUSED: 1}
    assert data.troubles.files[REFUSED][0].endswith("a.jpg")
    assert re.search(f"{found}$", data[0]["error"])


@forms
def test_one_of_many(tmp_path, kind, write, folder):
    """Catches a set that one wrong picture stops, or a wrong one that is trained on."""
    sizes = {f"{i}.jpg": SHOWN for i in range(20)} | {"7.jpg": SHOWN[::-1]}
    for name in sizes:
        photograph(tmp_path / folder / name, 1)
    arguments = write(tmp_path, sizes)
    with pytest.raises(InputError, match="1 of 20 pictures looked at"):
        kind(**arguments)
    data = kind(**arguments, max_share=0.05)
    assert data.troubles.counts() == {REFUSED: 1}
    assert [i for i, sample in enumerate(data) if "error" in sample] == [list(sizes).index("7.jpg")]


@forms
def test_of_a_large_set_some_are_looked_at(tmp_path, kind, write, folder, monkeypatch):
    """Catches a start that opens all pictures of a large set, and one that looks at none but the first."""
    sizes = {f"{i:03}.jpg": SHOWN for i in range(3 * LOOKED_AT)}
    path = photograph(tmp_path / folder / "000.jpg", 1)
    for name in sizes:
        if name != path.name:
            (path.parent / name).hardlink_to(path)
    arguments = write(tmp_path, sizes)
    seen = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda name: seen.append(name) or real(name))
    kind(**arguments)
    assert len(set(seen)) == len(seen) == LOOKED_AT
    assert {seen[0].name, seen[-1].name} == {"000.jpg", "299.jpg"}
    Image.fromarray(shown(80, 60)).save(tmp_path / "b.jpg")
    for name in list(sizes)[150:]:
        (path.parent / name).unlink()
        (path.parent / name).hardlink_to(tmp_path / "b.jpg")
    with pytest.raises(InputError, match=r"50 of 100 pictures looked at .*15\d.jpg: it is 60x80 pixels"):
        kind(**arguments)


def test_a_few_in_a_sample_may_be_chance(tmp_path):
    """Catches a start that fails on two of a hundred pictures looked at, where one of a hundred is allowed."""
    sizes = {f"{i:03}.jpg": SHOWN for i in range(2 * LOOKED_AT)}
    for name in sizes:
        photograph(tmp_path / "train" / name, 1)
    sizes |= {"000.jpg": (1, 1), "199.jpg": (1, 1)}
    assert CocoDetection(**coco(tmp_path, sizes)).troubles.counts()[REFUSED] == 2
    with pytest.raises(InputError, match="2 of 100"):
        CocoDetection(**coco(tmp_path, sizes), max_share=0.0)


@forms
def test_sizes_that_are_none(tmp_path, kind, write, folder):
    """Catches sizes as text that end the reading of a file, and nonsense that is taken for a size without a word."""
    photograph(tmp_path / folder / "a.jpg", 6)
    photograph(tmp_path / folder / "b.jpg", 6)
    data = kind(**write(tmp_path, {"a.jpg": ("64.0", " 48"), "b.jpg": ("tall", -1)}))
    assert data.troubles.counts() == {"sizes that are none": 1}
    for sample in data:
        assert box_of(sample) == list(RED) == red_box(sample["image"])


@forms
def test_boxes_outside_of_a_picture_whose_size_is_not_stated(tmp_path, kind, write, folder):
    """Catches boxes that vanish when a picture is loaded, and were counted nowhere."""
    photograph(tmp_path / folder / "a.jpg", 6)
    arguments = write(tmp_path, {"a.jpg": None}, (50, 5, 60, 15))  # within the stored picture
    message = "none of its 1 images has an object.*; in its annotations: 1 boxes outside of their image dropped"
    with pytest.raises(InputError, match=message):
        kind(**arguments)


def test_voc_names_of_another_picture(tmp_path):
    """Catches an annotation file that was renamed, or copied, and is of another picture."""
    for name in ("a.jpg", "b.v2.jpg"):
        photograph(tmp_path / "JPEGImages" / name, 1)
    arguments = voc(tmp_path, {"a.jpg": SHOWN}, filename="c:\\pictures\\{name}")
    assert VOCDetection(**arguments).troubles.counts() == {}
    file = tmp_path / "Annotations" / "a.xml"
    text = file.read_text()
    for name in ("a", "a.png"):
        file.write_text(text.replace("c:\\pictures\\a.jpg", name))
        assert VOCDetection(**arguments).troubles.counts() == {}
    file.write_text(text.replace("a.jpg", "b.v2.jpg"))
    assert VOCDetection(**arguments).troubles.counts() == {"annotation files that name another picture": 1}
    (tmp_path / "Annotations" / "b.v2.xml").write_text(text.replace("a.jpg", "b.v2"))
    (tmp_path / "train.txt").write_text("b.v2\nb.v2\n")
    data = VOCDetection(**arguments)
    assert data.troubles.counts() == {"names listed more than once, taken once": 1}
    assert [path.name for path in data.paths] == ["b.v2.jpg"]
    photograph(tmp_path / "JPEGImages" / "b.v2.png", 1)
    assert "names with several pictures, of which the first is used" in VOCDetection(**arguments).troubles.counts()


def mask_folder(root, picture, mask, orientation):
    photograph(root / "images" / "train" / "a.jpg", orientation, picture)
    (root / "masks" / "train").mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(mask)).save(root / "masks" / "train" / "a.png")
    return dict(root=str(root), split="train", classes=2)


def red(picture) -> np.ndarray:
    return ((picture[..., 0] > 190) & (picture[..., 1] < 64)).astype(np.uint8)


@pytest.mark.parametrize("orientation", TURNED)
def test_masks(tmp_path, orientation):
    """Catches a mask of the shown picture that is refused, or laid over the stored one; and the other way round."""
    arguments = mask_folder(tmp_path, shown(), red(shown()), orientation)
    sample = MaskFolder(**arguments)[0]
    assert np.array_equal(red(sample["image"].numpy().transpose(1, 2, 0)), sample["mask"].numpy())
    assert sample["mask"].shape == SHOWN
    if orientation not in SIDEWAYS:
        return
    sensor = stored(shown(), orientation)
    sample = MaskFolder(**mask_folder(tmp_path, shown(), red(sensor), orientation))[0]
    assert np.array_equal(red(sample["image"].numpy().transpose(1, 2, 0)), red(sensor))
    assert sample["mask"].shape == SHOWN[::-1]


def test_square_masks(tmp_path):
    """Catches an option that is not passed on."""
    arguments = mask_folder(tmp_path, shown(64, 64), red(shown(64, 64)), 6)
    for follow, expected in ((True, shown(64, 64)), (False, stored(shown(64, 64), 6))):
        sample = MaskFolder(**arguments, orientation=follow)[0]
        assert np.array_equal(red(sample["image"].numpy().transpose(1, 2, 0)), red(expected))


def test_masks_of_another_size(tmp_path):
    """Catches a wholly wrong set that is noticed only after many steps, and masks that belong to no image or to two."""
    arguments = mask_folder(tmp_path, shown(), np.zeros((80, 60), np.uint8), 1)
    with pytest.raises(
        InputError, match="masks: 1 of 1 pictures .*a.jpg: it is 48x64 pixels and was annotated as 60x80"
    ):
        MaskFolder(**arguments)
    data = MaskFolder(**arguments, max_share=1.0)
    assert data.troubles.counts() == {REFUSED: 1}
    assert "a.jpg: it is 48x64 pixels and was annotated as 60x80" in data[0]["error"]
    arguments = mask_folder(tmp_path, shown(), red(shown()), 1)
    (tmp_path / "masks" / "train" / "b.png").write_bytes(b"")
    assert MaskFolder(**arguments).troubles.counts() == {"masks without an image left out": 1}
    photograph(tmp_path / "images" / "train" / "a.png", 1)
    with pytest.raises(
        InputError, match="images: .*a.jpg and a.png would both have the mask .*a.png; remove or rename"
    ):
        MaskFolder(**arguments)
