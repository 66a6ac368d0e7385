"""Pictures that are stored sideways are read as they are shown."""

import zlib

import numpy as np
import pytest
from photographs import SIDEWAYS, TURNED, photograph, shown, stored
from PIL import Image, ImageOps

from metala_vision.data import ImageFolder
from metala_vision.data.image_folder import read_image


def near(image: np.ndarray, expected: np.ndarray) -> bool:
    """The same but for what JPEG makes of it."""
    return image.shape == expected.shape and np.abs(image.astype(int) - expected.astype(int)).max() < 24


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_as_shown(tmp_path, suffix, orientation):
    """Catches a note that is not followed, followed the wrong way round, or twice: Pillow turns TIFF files itself."""
    path = photograph(tmp_path / f"a.{suffix}", orientation)
    with Image.open(path) as image:
        assert near(np.asarray(ImageOps.exif_transpose(image)), shown()), "the test writes what viewers understand"
    assert near(read_image(path, 3), shown())
    grey = read_image(path, 1)
    assert grey.shape == (64, 48, 1)
    assert grey.flags.c_contiguous
    as_stored = shown() if suffix == "tif" else stored(shown(), orientation)
    assert near(read_image(path, 3, orientation=False), as_stored)


@pytest.mark.parametrize("orientation", SIDEWAYS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_stated_size_decides(tmp_path, suffix, orientation):
    """Catches annotations of the stored pixels that are laid over the turned picture, and the other way round."""
    path = photograph(tmp_path / f"a.{suffix}", orientation)
    for follow in (True, False):
        assert near(read_image(path, 3, follow, (64, 48)), shown())
        assert near(read_image(path, 3, follow, (48, 64)), stored(shown(), orientation))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_any_mode_is_turned(tmp_path, mode):
    """Catches a turn that some conversion drops."""
    picture = Image.fromarray(np.ascontiguousarray(stored(shown(), 6)))
    picture = picture.convert("L" if mode == "I;16" else mode, palette=Image.Palette.ADAPTIVE)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) << 8)
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(path, exif=exif)
    expected = np.asarray(Image.fromarray(shown()).convert("L"))
    assert near(read_image(path, 1)[..., 0], expected)


HEADER = b"Exif\0\0II*\0\x08\0\0\0"  # little-endian, the tags behind it
TORN = {
    "garbage": b"Exif\0\0" + b"\x93\x07\xff" * 20,
    "nothing": b"Exif\0\0",
    "no byte order": b"Exif\0\0XX*\0\x08\0\0\0",
    "far away": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "cut off": HEADER + b"\x05\0\x12\x01\x03",
    "many tags": HEADER + b"\xff\xff" + b"\x0f\x01\x02\0\xff\xff\xff\x7f\xff\0\0\0",
    "a ninth way": HEADER + b"\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0",
    "text": HEADER + b"\x01\0\x12\x01\x02\0\x02\0\0\0\x36\0\0\0\0\0\0\0",
    "zero divided by zero": HEADER + b"\x01\0\x12\x01\x05\0\x01\0\0\0\0\0\0\0\0\0\0\0",
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("torn", TORN)
def test_a_torn_note_is_none(tmp_path, torn, suffix):
    """Catches a whole picture that is refused, or a warning in every worker, for some bytes beside its pixels."""
    path = photograph(tmp_path / f"a.{suffix}", 1, exif=TORN[torn])
    assert near(read_image(path, 3), shown())
    assert near(read_image(path, 3, stated=(64, 48)), shown())


def test_a_torn_note_that_still_says_it(tmp_path):
    """Catches a note that is thrown away with the tags behind it, as cut off by tools that write thumbnails anew."""
    tag = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    path = photograph(tmp_path / "a.jpg", 6, exif=HEADER + b"\xff\xff" + tag)
    assert near(read_image(path, 3), shown())


def test_a_note_behind_the_pixels(tmp_path):
    """Catches PNG files whose note stands last, and torn pixels that are taken for a torn note."""
    exif = Image.Exif()
    exif[274] = 6
    note = exif.tobytes()[6:]
    chunk = len(note).to_bytes(4, "big") + b"eXIf" + note + zlib.crc32(b"eXIf" + note).to_bytes(4, "big")
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(stored(shown(), 6))).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-12] + chunk + whole[-12:])
    assert near(read_image(path, 3), shown())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Exception, match="a.png: OSError: .*truncated"):
        read_image(path, 3)


def test_all_splits_of_a_folder(tmp_path):
    """Catches validation or test pictures that are read another way than those of training."""
    for split in ("train", "val", "test"):
        for orientation in (1, 6):
            photograph(tmp_path / split / "cat" / f"{orientation}.jpg", orientation)
    for split in ("train", "val", "test"):
        data = ImageFolder(str(tmp_path), split)
        for sample in data:
            assert near(sample["image"].numpy().transpose(1, 2, 0), shown())
        plain = ImageFolder(str(tmp_path), split, orientation=False)
        assert [tuple(sample["image"].shape) for sample in plain] == [(3, 64, 48), (3, 48, 64)]
