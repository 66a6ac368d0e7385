"""Augmentation: every strength on every kind of image, seeds, and the arguments of the pipelines."""

import collections
import random
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import rand_augment_transform
from timm.data.random_erasing import RandomErasing

from metala_vision.data import (
    Albumentations,
    BoxTransform,
    EpochSampler,
    EvalTransform,
    ImageFolder,
    MaskTransform,
    TrainTransform,
)
from metala_vision.data.photo_crops import write_photo_crops
from metala_vision.data.resize import resize
from metala_vision.data.transforms import INTERPOLATION, STRENGTHS, reseed
from metala_vision.errors import InputError

SHAPES = [(1, 1), (1, 90), (60, 90), (300, 20)]


def picture(shape, channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, channels), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_strengths(strength, channels):
    """Right shape from any image, the same from the same seed, other images from other seeds."""
    transform = TrainTransform(32, strength=strength)
    for shape in SHAPES:
        image = picture(shape, channels)
        results = [transform(image, seed).reshape(32, 32, channels) for seed in range(25)]
        assert all(np.array_equal(transform(image, s).reshape(32, 32, channels), r) for s, r in enumerate(results))
        if shape == (60, 90):
            assert len({result.tobytes() for result in results}) > 20
        assert EvalTransform(32)(image).reshape(32, 32, channels).dtype == np.uint8


def test_stronger_changes_more():
    """Distance from the plain crop, which every strength begins with from the same seed."""
    image = np.asarray(Image.fromarray(picture((8, 8), 3)).resize((128, 128), Image.Resampling.BICUBIC))
    changed = {
        strength: np.mean(
            [
                np.abs(
                    TrainTransform(64, scale=(1.0, 1.0), hflip=0.0, strength=strength)(image, s).astype(int)
                    - TrainTransform(64, scale=(1.0, 1.0), hflip=0.0)(image, s)
                ).mean()
                for s in range(30)
            ]
        )
        for strength in STRENGTHS
    }
    assert changed["light"] == 0
    assert 5 < changed["medium"] < changed["strong"]


def test_rand_augment_is_timms():
    """The same operations as timm's from the same state of Python's generator, whose state it leaves alone."""
    image = picture((64, 64), 3)
    transform = TrainTransform(64, scale=(1.0, 1.0), hflip=0.0, rand_augment="rand-m9-mstd0.5-inc1")
    ours = transform.compose.transforms[-1]
    random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    result = ours.apply(image)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    reseed(transform.compose, 5)
    result = ours.apply(image)
    reseed(transform.compose, 5)
    seed = ours.py_random.getrandbits(32)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    options = dict(translate_const=int(64 * 0.45), img_mean=(124, 116, 104), interpolation=Image.Resampling.BICUBIC)
    policy = rand_augment_transform("rand-m9-mstd0.5-inc1", options)
    assert np.array_equal(np.asarray(policy(Image.fromarray(image))), result)


def test_rand_augment_at_its_strongest():
    """timm asks Pillow for zero bits at the highest levels, which Pillow refuses: it would end a run after hours."""
    transform = TrainTransform(16, rand_augment="rand-m10-n6-inc1")
    image = picture((20, 20), 3)
    for seed in range(200):
        assert transform(image, seed).shape == (16, 16, 3)


def test_erasing_is_timms(monkeypatch):
    """As large as timm's and as often upright, and filled with noise as after timm's normalisation."""
    transform = TrainTransform(64, scale=(1.0, 1.0), hflip=0.0, erasing=1.0)
    timms = RandomErasing(probability=1.0, mode="pixel", device="cpu")
    flat = np.full((64, 64, 3), 7, np.uint8)
    random.seed(0)
    torch.manual_seed(0)
    erased = {
        "ours": [(transform(flat, seed) != 7).any(-1) for seed in range(600)],
        "timm's": [timms(torch.zeros(3, 64, 64)).numpy().any(0) for _ in range(600)],
    }
    shares = {name: np.mean([mask.mean() for mask in masks]) for name, masks in erased.items()}
    upright = {
        name: np.mean([mask.any(1).sum() > mask.any(0).sum() for mask in masks]) for name, masks in erased.items()
    }
    assert abs(shares["ours"] - shares["timm's"]) < 0.015
    assert abs(upright["ours"] - upright["timm's"]) < 0.08
    noise = np.concatenate([transform(flat, seed)[erased["ours"][seed]] for seed in range(20)]).astype(float)
    assert abs(noise.mean() - 116) < 2
    assert abs(noise.std() - 56) < 3  # a little under 57: what is beyond 0 and 255 is cut


def draws_box(members, image, seed):
    return BoxTransform(members)(image, np.array([[0, 0, 2, 2]], np.float32), None, seed)[0]


DRAWS = {
    "image": lambda members, image, seed: Albumentations(members)(image, seed),
    "boxes": draws_box,
    "mask": lambda members, image, seed: MaskTransform(members)(image, image[..., 0], seed)[0],
    "nested": lambda members, image, seed: Albumentations(
        [members[0], dict(type="Sequential", transforms=members[1:], p=1.0)]
    )(image, seed),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_augmentations_of_an_image_are_independent(kind):
    """Each kind of flip comes with and without the other, and with every crop: no number is drawn twice."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[0, 0] = 255
    members = [
        dict(type="HorizontalFlip", p=0.5),
        dict(type="VerticalFlip", p=0.5),
        dict(type="PadIfNeeded", min_height=9, min_width=8, position="top_left", border_mode=0, fill=0),
        dict(type="RandomCrop", height=8, width=8),
    ]
    seen = collections.Counter()
    for seed in range(400):
        result = DRAWS[kind](members, image, seed)
        rows, columns = np.nonzero(result[..., 0])
        seen[(rows[0], columns[0]) if len(rows) else "cropped"] += 1
    # the corner comes to four places, with either crop: two of the eight cases are one row higher, or cut off
    expected = {(0, 0): 1, (0, 7): 1, (7, 0): 1, (7, 7): 1, (6, 0): 1, (6, 7): 1, "cropped": 2}
    assert set(seen) == set(expected)
    for place, cases in expected.items():
        assert 0.6 < seen[place] / (400 * cases / 8) < 1.4, f"{place}: {seen}"


def test_recipe_of_imagenet_flips_and_erases_crops_of_any_size():
    """A ramp: its slope says how much of the image a crop covers, its sign the flip."""
    ramp = np.tile(np.linspace(0, 250, 251).astype(np.uint8)[None, :, None], (251, 1, 3))
    transform = TrainTransform(64, scale=(0.08, 1.0), erasing=0.5)
    covered = collections.defaultdict(list)
    for seed in range(500):
        result = transform(ramp, seed).astype(float)[..., 0]
        slope = np.median(np.diff(result, axis=1))
        wild = np.abs(np.diff(result, axis=1)) > 30  # noise: the ramp itself rises by at most four levels a pixel
        covered[slope < 0, wild.any()].append(abs(slope))
    means = {case: np.mean(slopes) for case, slopes in covered.items()}
    assert len(means) == 4
    assert all(len(slopes) > 85 for slopes in covered.values())
    assert max(means.values()) - min(means.values()) < 0.4, means


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(strength="extreme"), "strength: got 'extreme', expected one of"),
        (dict(erasing=2), "erasing: got 2, expected a probability"),
        (dict(rand_augment="augmix-m5"), "'augmix-m5' is no policy that timm knows"),
        (dict(rand_augment="rand-q9"), "'rand-q9' is no policy that timm knows"),
        (dict(extra=[dict(type="SomeOf", n=1, transforms=[dict(type="HorizontalFlip", q=1)])]), "HorizontalFlip.q=1"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(InputError, match=message):
        TrainTransform(32, **options)


def test_rand_augment_wants_colours():
    with pytest.raises(InputError, match="rand_augment: got an image of 1 channels, expected 3"):
        TrainTransform(32, rand_augment="rand-m9")(picture((40, 40), 1))


def test_downscaling_averages():
    """A checkerboard of single pixels at an eighth of its size: grey, and neither black nor white."""
    board = np.indices((256, 256)).sum(0)[..., None].repeat(3, 2) % 2 * 255
    for transform in (EvalTransform(32, crop_ratio=1.0), TrainTransform(32, scale=(1.0, 1.0), hflip=0.0)):
        small = transform(board.astype(np.uint8), 0).astype(int)
        assert np.abs(small - 128).max() < 20


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "pillow"), [("bilinear", 2), ("bicubic", 3)])
def test_resize_is_pillows(channels, name, pillow):
    """Within two levels on noise, smaller and larger, of a part of an image too; the array may be read-only."""
    image = picture((70, 111), channels)
    image.flags.writeable = False
    for height, width in ((20, 33), (64, 64), (70, 111), (150, 90), (1, 1)):
        for part in (image, image[5:50, 7:80]):
            ours = resize(part, height, width, INTERPOLATION[name])
            pil = Image.fromarray(np.ascontiguousarray(part).squeeze())
            theirs = np.asarray(pil.resize((width, height), pillow)).reshape(ours.shape)
            assert ours.shape == (height, width, channels)
            assert np.abs(ours.astype(int) - theirs).max() <= 2
    nearest = resize(image, 35, 111, INTERPOLATION["nearest"])
    assert set(np.unique(nearest)) <= set(np.unique(image))
    assert nearest.shape == (35, 111, channels)


# --- repeated augmentation


def test_repeats_are_drawn_side_by_side_with_other_seeds(monkeypatch):
    sampler = EpochSampler(range(10), seed=1, repeats=3)
    keys = list(sampler)
    assert len(keys) == len(sampler) == 10
    assert [key.sample for key in keys[:9]] == [keys[3 * i].sample for i in range(3) for _ in range(3)]
    assert len({key.sample for key in keys}) == 4
    assert len({key.seed for key in keys}) == 10
    ranks = []
    for rank in range(3):
        monkeypatch.setattr("metala_vision.data.sampling.get_dist_info", lambda rank=rank: (rank, 3))
        ranks.append([key.sample for key in EpochSampler(range(10), seed=1, repeats=3)])
    assert ranks[0][:3] == ranks[1][:3] == ranks[2][:3], "each rank has a copy"
    with pytest.raises(InputError, match="repeats is 2 with shuffle=False"):
        EpochSampler(range(10), shuffle=False, repeats=2)


def test_evaluation_draws_no_image_twice(monkeypatch):
    drawn = []
    for rank in range(3):
        monkeypatch.setattr("metala_vision.data.sampling.get_dist_info", lambda rank=rank: (rank, 3))
        drawn += [key.sample for key in EpochSampler(range(10), shuffle=False)]
    assert sorted(drawn) == list(range(10))


def test_ranks_see_what_one_process_sees(monkeypatch):
    """The same samples with the same seeds, dealt out: training does not depend on the number of processes."""
    alone = list(EpochSampler(range(12), seed=4))
    for rank in range(3):
        monkeypatch.setattr("metala_vision.data.sampling.get_dist_info", lambda rank=rank: (rank, 3))
        assert list(EpochSampler(range(12), seed=4)) == alone[rank::3]


# --- strange files


def folder_of(tmp_path, save):
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(10):
            save(tmp_path / label / f"{i}.png")
    return ImageFolder(str(tmp_path), "train", transform=dict(type="TrainTransform", img_size=16, strength="strong"))


def test_one_pixel(tmp_path):
    data = folder_of(tmp_path, lambda path: Image.new("RGB", (1, 1), (9, 8, 7)).save(path))
    assert data[0]["image"].shape == (3, 16, 16)


@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1)])
def test_thin_images_take_no_gigabytes(shape):
    image = picture(shape, 3)
    start = time.process_time()
    assert EvalTransform(224)(image).shape == (224, 224, 3)
    assert time.process_time() - start < 1, "whole it would be 256 x 7.7 million pixels, for half a minute"


def test_what_is_cut_off_a_thin_image_is_not_seen():
    smooth = np.tile((np.sin(np.arange(900) / 9) * 100 + 128).astype(np.uint8)[None, :, None], (30, 1, 3))
    whole = resize(smooth, 32, 960, INTERPOLATION["bicubic"])[2:30, 466:494]
    assert np.abs(EvalTransform(28)(smooth).astype(int) - whole).max() < 8


@pytest.mark.parametrize("size", [(32, 320), (32, 512), (512, 32), (1, 400), (40, 41)])
def test_a_picture_of_the_size_of_the_test_is_seen_whole(size):
    """Catches the ends of long pictures cut off before a crop that would have kept them."""
    image = picture(size, 3)
    assert (EvalTransform(size, crop_ratio=1.0)(image) == image).all()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be of this size and has hardly a byte of it."""
    ihdr = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunks = b""
    for kind, body in ((b"IHDR", ihdr), (b"IDAT", zlib.compress(b"0" * 100)), (b"IEND", b"")):
        chunks += len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("size", [(12_000, 12_000), (60_000, 60_000)])
def test_giant_is_reported_and_not_decoded(tmp_path, size):
    """A few bytes can ask for gigabytes of memory."""
    data = folder_of(tmp_path, lambda path: path.write_bytes(png_header(*size)))
    error = data[0]["error"]
    assert "DecompressionBomb" in error
    assert str(tmp_path) in error


# --- crops of photographs


def test_photo_crops_come_from_their_side(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 400).astype(np.uint8), (150, 1))  # grey says the column
    counts = write_photo_crops({"ramp": ramp, "dark": ramp // 2}, tmp_path / "out", size=100, train=20, val=10)
    assert counts == {"train": 40, "val": 20}
    cut = ramp[0, 260]
    for split, right in (("train", False), ("val", True)):
        paths = sorted((tmp_path / "out" / split / "ramp").glob("*.png"))
        crops = [np.asarray(Image.open(path)) for path in paths]
        assert all(crop.shape == (100, 100) for crop in crops)
        assert all((crop.min() >= cut) if right else (crop.max() <= cut) for crop in crops)
        assert len({crop.tobytes() for crop in crops}) > 5
    assert len(ImageFolder(str(tmp_path / "out"), "test", holdout=0.0)) == 20
    assert len(ImageFolder(str(tmp_path / "out"), "train", holdout=0.0)) == 40
    with pytest.raises(InputError, match="exists already"):
        write_photo_crops({"ramp": ramp}, tmp_path / "out")
    with pytest.raises(InputError, match="ramp is 400x150, too small for crops of 151"):
        write_photo_crops({"ramp": ramp}, tmp_path / "other", size=151)
