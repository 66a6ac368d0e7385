"""tools/predict.py: what it prints, what it leaves, and when it fails."""

import csv
import json
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from metala_vision.data import rle
from metala_vision.errors import InputError


def lines(out) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def table(out) -> list[dict]:
    with open(out / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder(load_tool, classifier, folder, tmp_path, capsys):
    """Unreadable files are named and skipped, and cost nothing of the rest."""
    out = tmp_path / "found"
    result = load_tool("predict.py")(str(classifier), str(folder), "--top-k", "2", "--out", str(out))
    printed = capsys.readouterr().out
    assert (result["images"], len(result["skipped"])) == (5, 2)
    assert "broken.png: not read" in printed
    assert "pictures: 5 in" in printed
    records = lines(out)
    assert sum("error" in record for record in records) == 2
    assert [len(record["classes"]) for record in records if "classes" in record] == [2] * 5
    assert len(table(out)) == 10
    assert table(out)[0]["rank"] == "1"
    drawn = sorted(path.relative_to(out).as_posix() for path in (out / "pictures").rglob("*.jpg"))
    assert drawn == [
        f"pictures/deep/{n}.jpg" for n in ("alpha.webp", "cmyk.tif", "grey.png", "plain.png", "rotated.png")
    ]
    with Image.open(out / "pictures/deep/rotated.png.jpg") as image:
        assert image.width == 480
        assert image.height > 360  # the lines below it


def test_pictures_of_one_name(load_tool, classifier, folder, tmp_path):
    """Catches a picture that is written over another one's."""
    other = folder / "other"
    other.mkdir()
    (other / "plain.png").write_bytes((folder / "deep" / "plain.png").read_bytes())
    for number, images in enumerate([[str(folder / "*" / "plain.png")], [str(folder / "deep"), str(other)]]):
        out = tmp_path / f"found{number}"
        load_tool("predict.py")(str(classifier), *images, "--out", str(out))
        drawn = sorted(path.relative_to(out / "pictures").as_posix() for path in out.rglob("plain.png.jpg"))
        assert drawn == ["deep/plain.png.jpg", "other/plain.png.jpg"]


def test_pictures_that_jpeg_or_utf8_cannot_hold(load_tool, classifier, folder, tmp_path, capsys):
    """Catches one picture that ends the run of all others: of a side beyond JPEG's, of a name that is no text."""
    Image.new("RGB", (66000, 4), "red").save(folder / "deep" / "long.png")
    (folder / "deep" / os.fsdecode(b"\xff.png")).write_bytes((folder / "deep" / "plain.png").read_bytes())
    out = tmp_path / "found"
    result = load_tool("predict.py")(str(classifier), str(folder), "--out", str(out))
    assert result["images"] == 7
    with Image.open(out / "pictures" / "deep" / "long.png.jpg") as image:
        assert 60000 < image.width <= 65500
    with open(out / "predictions.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert any(row["image"].endswith("\udcff.png") for row in csv.DictReader(file))
    assert "?.png (90x120)" in capsys.readouterr().out


def test_names_as_long_as_may_be(load_tool, dense, folder, tmp_path):
    """Catches a legal name that becomes too long by the ending of a picture, and ends the run of all others."""
    for letter in ("a", "\u00e9"):
        name = letter * ((255 - 4) // len(letter.encode())) + ".png"
        (folder / "deep" / name).write_bytes((folder / "deep" / "plain.png").read_bytes())
    out = tmp_path / "found"
    result = load_tool("predict.py")(str(dense("segmentation", "unet")), str(folder), "--out", str(out))
    assert result["images"] == 7
    for place in ("pictures", "class_maps"):
        names = [path.name for path in (out / place / "deep").iterdir()]
        assert len(names) == len(set(names)) == 7
        assert 240 < max(len(name.encode()) for name in names) <= 255


def test_a_frame_that_cannot_be_decoded(load_tool, classifier, tmp_path, monkeypatch, picture):
    """Catches a video that ends in silence where its container does not state how many frames there are."""

    class Broken:
        def __init__(self, path):
            self.frame = -1

        def grab(self):
            self.frame += 1
            return self.frame < 10

        def retrieve(self):
            return self.frame < 4, picture

        def get(self, key):
            return 0.0

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Broken)
    (tmp_path / "clip.mkv").write_text("")
    found = load_tool("predict.py")(str(classifier), str(tmp_path / "clip.mkv"))
    assert found["images"] == 4
    assert found["skipped"] == [
        dict(image=f"{tmp_path / 'clip.mkv'}#4", error="this frame and those after it cannot be read")
    ]


def test_a_video(load_tool, classifier, picture, tmp_path):
    """Frames by their numbers and times."""
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (120, 90))
    for _ in range(7):
        writer.write(picture[:, :, ::-1].copy())
    writer.release()
    (tmp_path / "none.mp4").write_text("no video")
    out = tmp_path / "found"
    files = [str(tmp_path / name) for name in ("clip.avi", "none.mp4")]
    whole = (tmp_path / "clip.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 3])
    (cut,) = load_tool("predict.py")(str(classifier), str(tmp_path / "cut.avi"))["skipped"]
    assert "the video ends here, and states 7 frames" in cut["error"]
    result = load_tool("predict.py")(str(classifier), *files, "--every", "3", "--out", str(out), "--no-pictures")
    assert result["images"] == 3
    assert result["skipped"][0]["error"] == "no frame of this video can be read"
    frames = lines(out)[:3]
    assert [frame["image"].rpartition("#")[2] for frame in frames] == ["0", "3", "6"]
    assert [frame["seconds"] for frame in frames] == pytest.approx([0, 0.3, 0.6])
    assert not (out / "pictures").exists()


def test_masks_of_objects(load_tool, dense, folder, tmp_path):
    file = dense(
        "detection", "mask_rcnn", dict(min_size=64, max_size=128, box_score_thresh=0.0, box_detections_per_img=4)
    )
    out, plain = tmp_path / "found", str(folder / "deep" / "plain.png")
    load_tool("predict.py")(str(file), plain, "--min-score", "0.3", "--out", str(out))
    (record,) = lines(out)
    assert len(record["objects"]) == len(table(out)) > 0
    code = record["objects"][0]["mask"]
    assert rle.decode([dict(size=code["size"], counts=code["counts"].encode())]).shape == (1, 90, 120)
    assert float(table(out)[0]["right"]) == pytest.approx(record["objects"][0]["box"][2], abs=0.01)
    assert (out / "pictures" / "plain.png.jpg").is_file()


def test_maps_of_areas(load_tool, dense, folder, tmp_path):
    file = dense("segmentation", "fpn", short_side=None, window=None, stride=None)
    out = tmp_path / "found"
    load_tool("predict.py")(str(file), str(folder / "deep" / "plain.png"), "--out", str(out))
    (record,) = lines(out)
    with Image.open(out / "class_maps" / "plain.png.png") as image:
        values, counts = np.unique(np.asarray(image), return_counts=True)
    assert sorted(counts / 10800, reverse=True) == pytest.approx([area["share"] for area in record["areas"]], abs=1e-6)
    assert set(values) <= {0, 1, 2}


def test_too_large(load_tool, classifier, folder, tmp_path, monkeypatch):
    """A limit that the user can raise, and the message says how."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    plain = str(folder / "deep" / "plain.png")
    with pytest.raises(InputError, match=r"none of 1 can be read.*--max-pixels\) admits it"):
        load_tool("predict.py")(str(classifier), plain)
    assert load_tool("predict.py")(str(classifier), plain, "--max-pixels", "20000", "--tile", "64")["images"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "threads: got 0, expected a whole number of at least 1"),
        (["--max-pixels", "0"], "--max-pixels: got 0, expected at least 1"),
        (["--device", "tpu"], "--device: got 'tpu'"),
        (["--out", "/proc/none"], "--out: /proc/none cannot be written"),
    ],
)
def test_what_does_not_fit(load_tool, classifier, folder, arguments, message):
    with pytest.raises(InputError, match=message):
        load_tool("predict.py")(str(classifier), str(folder), *arguments)
