"""Splits, folders, and everything that is wrong with a folder of images."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metala_vision.data import (
    Albumentations,
    Digits,
    EvalTransform,
    FashionMNIST,
    ImageFolder,
    LabelledImages,
    TrainTransform,
    collate_images,
    fashion_mnist,
    stratified_split,
    stratified_subset,
)
from metala_vision.data.image_folder import read_image
from metala_vision.data.packed import PackedStrings


def save_image(path, seed=0, size=(20, 16), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """root/CLASS/IMAGE, two classes of 20 images."""
    for label in ("cat", "dog"):
        for i in range(20):
            save_image(tmp_path / "all" / label / f"{i}.png", seed=i)
    return tmp_path / "all"


def test_stratified_split_is_a_partition_with_the_class_shares():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    parts = stratified_split(labels, (0.7, 0.1, 0.2))
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(160))
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[70, 35, 7], [10, 5, 1], [20, 10, 2]]
    assert all(np.array_equal(a, b) for a, b in zip(parts, stratified_split(labels, (0.7, 0.1, 0.2))))


def test_stratified_subset():
    labels = np.repeat([0, 1], [600, 400])
    assert np.bincount(labels[stratified_subset(labels, 100)]).tolist() == [60, 40]
    assert len(stratified_subset(labels, 1000)) == 1000


def test_digits_splits_are_disjoint_and_named():
    parts = {split: Digits(split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 1258, "val": 180, "test": 359}
    seen = [
        image.tobytes() + bytes([label]) for part in parts.values() for image, label in zip(part.images, part.labels)
    ]
    assert len(set(seen)) == len(seen) == 1797
    assert parts["train"][0]["image"].shape == (1, 8, 8)
    assert parts["train"].images.max() == 255  # the full range of uint8 and not scikit-learn's 0 to 16
    with pytest.raises(ValueError, match="split: got 'valid', expected one of"):
        Digits("valid")


def idx_file(path, data: np.ndarray):
    header = bytes([0, 0, 8, data.ndim]) + b"".join(int(size).to_bytes(4, "big") for size in data.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + data.astype(np.uint8).tobytes())


@pytest.fixture
def debian(tmp_path, monkeypatch):
    """A small stand-in for the files of Debian's package, in their place."""
    rng = np.random.default_rng(0)
    for part, size in (("train", 240), ("t10k", 40)):
        idx_file(tmp_path / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (size, 28, 28)))
        idx_file(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(size) % 10)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path)
    return tmp_path


def test_fashion_mnist_from_the_debian_package(debian, tmp_path):
    root = tmp_path / "data"
    parts = {split: FashionMNIST(str(root), split, download=False) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 220, "val": 20, "test": 40}
    images = [image.tobytes() for part in parts.values() for image in part.images]
    assert len(set(images)) == 280
    assert parts["val"][0]["image"].shape == (1, 28, 28)
    subset = FashionMNIST(str(root), "train", subset=100)
    assert np.bincount(subset.labels).tolist() == [10] * 10
    with pytest.raises(ValueError, match="subset: got 999, expected 1 to 220"):
        FashionMNIST(str(root), "train", subset=999)
    assert not list(root.rglob("*.tmp"))


def test_fashion_mnist_without_a_holdout_trains_on_all(debian, tmp_path):
    parts = {split: FashionMNIST(str(tmp_path), split, holdout=0.0) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 240, "val": 40, "test": 40}
    assert np.array_equal(parts["val"].images, parts["test"].images)
    assert len({image.tobytes() for image in np.concatenate([parts["train"].images, parts["test"].images])}) == 280
    with pytest.raises(ValueError, match=r"holdout: got 0.5, expected a number in \[0, 0.5\)"):
        FashionMNIST(str(tmp_path), "train", holdout=0.5)


def test_fashion_mnist_missing_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
    with pytest.raises(ValueError, match="Debian's package dataset-fashion-mnist"):
        FashionMNIST(str(tmp_path), "train", download=False)


def test_folder_of_classes_is_split_in_three(folder):
    parts = {split: ImageFolder(str(folder), split) for split in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [32, 4, 4]
    paths = [path for part in parts.values() for path in part.paths]
    assert len(set(paths)) == len(paths) == 40
    assert parts["val"].classes == ("cat", "dog")
    assert np.bincount(parts["val"].labels).tolist() == [2, 2]


def test_imagenet_layout_holds_validation_out_of_train(folder, tmp_path):
    root = tmp_path / "imagenet"
    shutil.copytree(folder, root / "train")
    shutil.copytree(folder, root / "val")
    parts = {split: ImageFolder(str(root), split) for split in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [36, 4, 40]
    assert not set(parts["train"].paths) & set(parts["val"].paths)
    assert all("/val/" in path for path in parts["test"].paths)


def test_imagenet_with_its_unlabelled_test_images(folder, tmp_path):
    root = tmp_path / "imagenet"
    for split in ("train", "val"):
        shutil.copytree(folder, root / split)
    save_image(root / "test" / "0.png")
    assert all("/val/" in path for path in ImageFolder(str(root), "test").paths)
    assert len(ImageFolder(str(root), "train", holdout=0.0)) == 40


def test_three_folders_are_taken_as_they_are(folder, tmp_path):
    root = tmp_path / "three"
    for split in ("train", "val", "test"):
        shutil.copytree(folder, root / split)
    for split in ("train", "val", "test"):
        part = ImageFolder(str(root), split)
        assert len(part) == 40
        assert all(f"/{split}/" in path for path in part.paths)


def test_folder_errors(folder, tmp_path):
    with pytest.raises(ValueError, match=r"--data-root \(root\): no folder .*nowhere"):
        ImageFolder(str(tmp_path / "nowhere"), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no class folders"):
        ImageFolder(str(tmp_path / "empty"), "train")
    (folder / "bird").mkdir()
    (folder / "bird" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="class folder .*bird has no images"):
        ImageFolder(str(folder), "train")
    root = tmp_path / "split"
    shutil.copytree(folder / "cat", root / "train" / "cat")
    with pytest.raises(ValueError, match="a train folder and neither val nor test"):
        ImageFolder(str(root), "train")
    shutil.copytree(folder / "dog", root / "val" / "dog")
    with pytest.raises(ValueError, match="classes of test and train differ in .*: cat, dog"):
        ImageFolder(str(root), "test")
    shutil.rmtree(root / "train")
    shutil.move(root / "val", root / "test")
    assert len(ImageFolder(str(root), "test")) == len(list((root / "test" / "dog").iterdir())), "a test needs no more"
    with pytest.raises(ValueError, match="has test and no train folder"):
        ImageFolder(str(root), "train")
    with pytest.raises(ValueError, match="channels: got 4"):
        ImageFolder(str(folder), "train", channels=4)
    with pytest.raises(ValueError, match="holdout: got 0.7"):
        ImageFolder(str(folder), "train", holdout=0.7)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "1"])
def test_images_are_converted(tmp_path, mode):
    for label in "ab":
        for i in range(20):
            save_image(tmp_path / label / f"{i}.{'jpg' if mode == 'CMYK' else 'png'}", mode=mode)
    assert ImageFolder(str(tmp_path), "train")[0]["image"].shape == (3, 16, 20)
    assert ImageFolder(str(tmp_path), "train", channels=1)[0]["image"].shape == (1, 16, 20)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 16 * 20).astype(np.uint16).reshape(16, 20)
    for label in "ab":
        for i in range(20):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.fromarray(ramp).save(tmp_path / label / f"{i}.png")
    image = ImageFolder(str(tmp_path), "train")[0]["image"]
    assert np.abs(image[0].numpy().astype(int) - (ramp >> 8)).max() == 0
    assert len(image.unique()) > 200


def test_what_is_transparent_is_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:6, 2:6, 3] = 255  # a black square on nothing, whose colour is black too
    image = Image.fromarray(pixels)
    expected = np.full((8, 8), 255)
    expected[2:6, 2:6] = 0
    palette = Image.fromarray(np.where(expected == 0, 1, 0).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    image.save(tmp_path / "rgba.png")
    image.convert("LA").save(tmp_path / "la.png")
    palette.save(tmp_path / "p.png", transparency=0)
    for path in tmp_path.glob("*.png"):
        for channels in (1, 3):
            assert (read_image(path, channels) == expected[..., None]).all(), (path, channels)


def test_sixteen_bits_of_any_format(tmp_path):
    values = np.array([[0, 255, 256], [4096, 32768, 65535]], np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5 3 2 65535\n" + values.astype(">u2").tobytes())
    Image.fromarray(values).save(tmp_path / "a.png")
    for name in ("a.pgm", "a.png"):
        assert (read_image(tmp_path / name, 1)[..., 0] == values >> 8).all(), name


def test_packed_strings():
    names = ["", "a/b.png", "ä/é.jpg", "x" * 300]
    packed = PackedStrings(names)
    assert list(packed) == names
    assert packed[-1] == names[-1]
    assert packed[1:3] == names[1:3]
    assert "a/b.png" in packed
    assert len(PackedStrings([])) == 0
    with pytest.raises(IndexError):
        packed[4]


def test_hidden_files_are_no_images(folder):
    """Notebook checkpoints and thumbnails are copies of images: they would leak between the splits."""
    (folder / "cat" / ".ipynb_checkpoints").mkdir()
    save_image(folder / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png")
    save_image(folder / "cat" / "._0.png")
    (folder / "cat" / "folder.png").mkdir()
    assert sum(len(ImageFolder(str(folder), split)) for split in ("train", "val", "test")) == 40


def test_broken_images_are_left_out_of_the_batch(folder):
    data = ImageFolder(str(folder), "train")
    Path(data.paths[0]).write_bytes(b"not an image")
    whole = Path(data.paths[1]).read_bytes()
    Path(data.paths[1]).write_bytes(whole[: len(whole) // 2])
    batch = collate_images([data[i] for i in range(4)])
    assert batch["inputs"].shape == (2, 3, 16, 20)
    assert batch["labels"].tolist() == data.labels[2:4].tolist()
    assert len(batch["errors"]) == 2
    assert data.paths[0] in batch["errors"][0]
    assert "truncated" in batch["errors"][1]
    nothing = collate_images([data[0], data[1]])
    assert len(nothing["inputs"]) == len(nothing["labels"]) == 0


def test_images_of_different_shapes_cannot_be_a_batch(tmp_path):
    for label in "ab":
        for i in range(20):
            save_image(tmp_path / label / f"{i}.png", size=(20 + i % 2, 16))
    data = ImageFolder(str(tmp_path), "train")
    with pytest.raises(ValueError, match="differ in shape.*end the transform with a crop or a resize"):
        collate_images([data[i] for i in range(4)])


def test_labels_are_checked():
    class Custom(LabelledImages):
        pass

    with pytest.raises(ValueError, match="labels of the train split run from 0 to 5, expected 0 to 2 for 3 classes"):
        Custom("train", "abc", np.array([0, 1, 5]))
    with pytest.raises(ValueError, match="run from -1"):
        Custom("train", "abc", np.array([0, -1, 2]))
    with pytest.raises(ValueError, match="classes without images in the train split: c"):
        Custom("train", "abc", np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="the val split has no images"):
        Custom("val", "abc", np.array([]))


def test_eval_transform_resizes_and_crops():
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    assert EvalTransform(32, crop_ratio=0.875)(image).shape == (32, 32, 3)
    same = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    assert np.array_equal(EvalTransform(28, crop_ratio=1.0)(same).reshape(28, 28, 1), same)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (50, 50), (40, 400)])
def test_eval_transform_of_a_size_that_is_not_square(shape):
    """Catches height for width, an image that is stretched, and a border that no pixel of the image has filled."""
    rows, columns = np.indices(shape)
    image = np.stack([255 * rows / shape[0], 255 * columns / shape[1], 0 * rows + 255], -1).round().astype(np.uint8)
    found = EvalTransform((64, 32), crop_ratio=0.8)(image).astype(int)
    assert found.shape == (64, 32, 3)
    scale = max(80 / shape[0], 40 / shape[1])  # of the image, which just covers 80 x 40
    assert found[..., 2].min() > 250
    for axis, name in ((0, "rows"), (1, "columns")):
        seen = found[..., axis].max() - found[..., axis].min()
        assert seen == pytest.approx(255 * (64, 32)[axis] / (scale * shape[axis]), abs=12), name
        assert found[..., axis].mean() == pytest.approx(127, abs=5), f"{name}: the middle"
    square = EvalTransform((32, 32))(image)
    assert np.array_equal(square, EvalTransform(32)(image))


def test_train_transform_is_reproducible_and_random():
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    transform = TrainTransform(32)
    assert transform(image, 1).shape == (32, 32, 3)
    assert np.array_equal(transform(image, 1), transform(image, 1))
    assert not np.array_equal(transform(image, 1), transform(image, 2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(type="HorizontalFlipp"), "unknown albumentation 'HorizontalFlipp'.*did you mean HorizontalFlip"),
        (dict(p=0.5), "unknown albumentation None"),
        (dict(type="GaussNoise", var_limit=3), r"GaussNoise\(var_limit=3\): .*not valid"),
        (dict(type="CoarseDropout", max_holes=3), "max_holes"),
        (dict(type="RandomResizedCrop", height=3), "size"),
        (dict(type="HorizontalFlip", p=7), "less than or equal to 1"),
    ],
)
def test_augmentation_arguments_are_errors(config, message):
    """albumentations itself only warns of arguments it does not know, and trains on without them."""
    with pytest.raises(ValueError, match=f"(?s){message}"):
        Albumentations([config])


def test_transform_errors():
    with pytest.raises(ValueError, match="img_size: got 0"):
        EvalTransform(0)
    for size in ((32,), (32, 32, 3), "32"):
        with pytest.raises(ValueError, match=r"img_size: got .*, expected one integer, or \(height, width\)"):
            EvalTransform(size)
    with pytest.raises(ValueError, match="img_size: got -8, expected a positive integer"):
        EvalTransform((32, -8))
    with pytest.raises(ValueError, match="crop_ratio: got 1.5"):
        EvalTransform(8, crop_ratio=1.5)
    with pytest.raises(ValueError, match="interpolation: got 'cubic'"):
        TrainTransform(8, interpolation="cubic")
