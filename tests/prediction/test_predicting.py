"""Predictions equal the model's own numbers, on pictures of every kind, from every source."""

import io
import zipfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small_checkpoints import IMAGES, NAMES

import metala_vision
from metala_vision.data import EvalTransform
from metala_vision.data.image_folder import read_image
from metala_vision.data.preparation import Preparation
from metala_vision.dense import class_map, load_dense
from metala_vision.deploy import model_of
from metala_vision.errors import InputError
from metala_vision.prediction import ClassFound, ObjectFound, Prediction
from metala_vision.prediction.sources import imagenet_names, open_source


def normalised(pixels: np.ndarray) -> torch.Tensor:
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None] / 255
    return (image - torch.tensor(IMAGES["mean"]).view(-1, 1, 1)) / torch.tensor(IMAGES["std"]).view(-1, 1, 1)


def probabilities(found: Prediction) -> list[float]:
    return [dict(found.classes)[name] for name in NAMES]


@pytest.mark.parametrize("batch", [1, 2, 16])
@pytest.mark.parametrize("img_size", [None, 96, (48, 80)])
def test_classes(classifier, folder, batch, img_size):
    """As the test of a run prepares images; in the order of the files, whatever lies in one batch with what."""
    found = list(metala_vision.predict(classifier, folder, img_size=img_size, batch=batch, top_k=9))
    assert [one.image.rpartition("/")[2] for one in found] == sorted(p.name for p in folder.rglob("*.*[!t]"))
    model, _ = model_of(classifier)
    transform = EvalTransform(img_size or (64, 64), 0.875, "bilinear")
    for one in found:
        if one.error:
            continue
        assert (one.height, one.width) == (90, 120)
        with torch.no_grad():
            expected = model(normalised(transform(read_image(one.image, 3)))).softmax(1)[0]
        torch.testing.assert_close(torch.tensor(probabilities(one)), expected, atol=1e-5, rtol=0)
        shares = [share for _, share in one.classes]
        assert shares == sorted(shares, reverse=True)
    by_name = {one.image.rpartition("/")[2]: one for one in found}
    for same in ("rotated.png", "alpha.webp"):
        assert probabilities(by_name[same]) == pytest.approx(probabilities(by_name["plain.png"]), abs=1e-6)
    assert "truncated" in by_name["broken.png"].error or "broken" in by_name["broken.png"].error
    assert "cannot identify" in by_name["text.jpg"].error
    assert by_name["text.jpg"].classes is None


def test_pictures_in_memory_and_by_pattern(classifier, folder, picture):
    predictor = metala_vision.Predictor(classifier, top_k=3)
    (plain,) = predictor(folder / "deep" / "plain.png")
    grey = np.asarray(Image.fromarray(picture).convert("L"))[:, :, None]
    several = [Image.fromarray(picture), picture, str(folder / "**" / "pl*.png"), grey]
    found = list(predictor(several))
    assert [one.image for one in found] == ["0", "1", plain.image, "3"]
    for one in found[:3]:
        assert probabilities(one) == pytest.approx(probabilities(plain), abs=1e-6)
    (read,) = predictor([folder / "deep" / "grey.png"])
    assert probabilities(found[3]) == pytest.approx(probabilities(read), abs=1e-6)


def test_pictures_in_memory_are_read_as_files_are(classifier, picture, tmp_path):
    """Catches 16 bits clipped to white, transparent pixels that are black, and a broken picture that ends all."""
    deep = Image.fromarray(picture[:, :, 0].astype(np.uint16) * 256 + 255)
    alpha = np.where(np.arange(120) < 60, 0, 255) + np.zeros((90, 1))
    clear = Image.fromarray(np.dstack([picture, alpha]).astype(np.uint8))
    predictor = metala_vision.Predictor(classifier, top_k=3)
    for name, image in (("deep.png", deep), ("clear.png", clear)):
        image.save(tmp_path / name)
        by_path, opened, in_memory = predictor([tmp_path / name, Image.open(tmp_path / name), image])
        assert probabilities(opened) == pytest.approx(probabilities(by_path), abs=1e-6)
        assert probabilities(in_memory) == pytest.approx(probabilities(by_path), abs=1e-6)
    whole = (tmp_path / "clear.png").read_bytes()
    broken = Image.open(io.BytesIO(whole[: len(whole) // 2]))
    found = list(predictor([picture, broken, Image.new("F", (8, 8)), picture]))
    assert [bool(one.error) for one in found] == [False, True, True, False]
    assert "truncated" in found[1].error
    assert "32-bit pixels" in found[2].error


@pytest.mark.parametrize("channels", [1, 3])
def test_as_timm_prepares_images(channels, picture):
    """Catches weights whose images are squashed and not cropped, and models of grey images with the mean of colours."""
    cfg = dict(crop_mode="squash", crop_pct=0.8, mean=(0.1, 0.2, 0.6), std=(0.2, 0.3, 0.4), interpolation="bicubic")
    options = dict(img_size=64, embed_dim=32, depth=1, num_heads=2, pretrained_cfg_overlay=cfg)
    model, described = model_of("vit_tiny_patch16_224", in_chans=channels, **options)
    assert described["input_size"] == [channels, 64, 64]
    assert described["mean"] == pytest.approx([0.1, 0.2, 0.6] if channels == 3 else [0.3])
    image = Image.fromarray(picture).convert("RGB" if channels == 3 else "L")
    seen = {**cfg, "mean": described["mean"], "std": described["std"]}
    named = timm.data.create_transform((channels, 64, 64), **seen)
    mine = Preparation(described)(read_array(image, channels))
    assert mine.shape == (channels, 64, 64)
    assert (mine - named(image)).abs().max() < 0.1  # levels of 255: resizing differs by two
    (found,) = metala_vision.predict("vit_tiny_patch16_224", image, in_chans=channels, num_classes=1000, **options)
    assert len(found.classes) == 5
    with pytest.raises(InputError, match="source: the model reads a sequence of 64 pixels"):
        Preparation({**described, "input_size": [3, 1, 64], "crop_pct": None})


def read_array(image: Image.Image, channels: int) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, channels)


def test_tiles_of_a_classifier(classifier, picture):
    """The mean of the probabilities of tiles that cover the picture."""
    (whole,) = metala_vision.predict(classifier, picture, top_k=3, tile=64)
    predictor = metala_vision.Predictor(classifier, top_k=3)
    parts = [picture[top : top + 64, left : left + 64] for top in (0, 26) for left in (0, 28, 56)]
    expected = np.mean([probabilities(one) for one in predictor(parts)], 0)
    assert probabilities(whole) == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("img_size", [None, 96])
@pytest.mark.parametrize("kind", ["fcos", "mask_rcnn"])
def test_objects(dense, picture, kind, img_size):
    """In pixels of the picture, as the detector itself finds them."""
    options = {"fcos": dict(score_thresh=0.0), "mask_rcnn": dict(box_score_thresh=0.0, box_detections_per_img=8)}[kind]
    file = dense("detection", kind, dict(min_size=64, max_size=128, **options))
    model, _ = load_dense(file)
    if img_size:
        model.transform.min_size, model.transform.max_size = (img_size,), 192
    with torch.no_grad():
        (expected,) = model([torch.from_numpy(picture.transpose(2, 0, 1) / 255).float()])
    least = expected["scores"].median().item()
    (found,) = metala_vision.predict(file, picture, min_score=least, img_size=img_size)
    chosen = (expected["scores"] >= least).nonzero()[:, 0].tolist()
    assert 0 < len(chosen) < len(expected["scores"])
    assert len(found.objects) == len(chosen)
    for one, i in zip(found.objects, chosen):
        assert one.name == NAMES[expected["labels"][i] - 1]
        assert one.score == pytest.approx(expected["scores"][i].item(), abs=1e-5)
        assert one.box == pytest.approx(expected["boxes"][i].tolist(), abs=1e-2)
        assert (one.mask is None) == (kind == "fcos")
        if one.mask is not None:
            assert one.mask.shape == (90, 120)
            assert (one.mask == (expected["masks"][i][0] >= 0.5).numpy()).mean() > 0.999


@pytest.mark.parametrize(("tile", "img_size"), [(None, None), (None, 64), (40, None), (40, 64)], ids=str)
def test_areas(dense, picture, tile, img_size):
    """In tiles of the picture itself, unless it is to be resized: catches a large picture that is shrunk first."""
    sizes = dict(short_side=48, window=None, stride=None)
    file = dense("segmentation", "fpn", **sizes)
    (found,) = metala_vision.predict(file, picture, tile=tile, img_size=img_size)
    model, _ = load_dense(file)
    with torch.no_grad():
        short_side = img_size or (None if tile else 48)
        expected = class_map(model, normalised(picture), short_side, tile, tile and 30)
    assert found.class_map.shape == (90, 120)
    assert (found.class_map == expected.numpy()).mean() > 0.999
    assert len(found.areas) > 1
    shares = [(found.class_map == NAMES.index(name)).mean() for name, _ in found.areas]
    assert [share for _, share in found.areas] == pytest.approx(shares)
    assert shares == sorted(shares, reverse=True)


@pytest.mark.long
@pytest.mark.parametrize("ending", [".onnx", ".xml", ".pt2"])
def test_an_exported_file(classifier, picture, tmp_path, ending):
    """Says what the checkpoint says, at other sizes too."""
    pytest.importorskip({".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "torch"}[ending])
    metala_vision.export(classifier, tmp_path / f"m{ending}")
    for img_size in (None, (48, 80)):
        (expected,) = metala_vision.predict(classifier, picture, img_size=img_size)
        (found,) = metala_vision.predict(tmp_path / f"m{ending}", picture, img_size=img_size, threads=1)
        assert probabilities(found) == pytest.approx(probabilities(expected), abs=1e-5)


@pytest.mark.long
def test_an_exported_detector(dense, picture, tmp_path):
    """Finds what its checkpoint finds, at another size too, and in tiles."""
    pytest.importorskip("onnxruntime")
    options = dict(min_size=128, max_size=256, score_thresh=0.0)
    file = dense("detection", "retinanet", options, input_size=[3, 128, 128])
    metala_vision.export(file, tmp_path / "m.onnx")
    for options in ({}, dict(img_size=160), dict(tile=64)):
        (expected,) = metala_vision.predict(file, picture, min_score=0.0, **options)
        (found,) = metala_vision.predict(tmp_path / "m.onnx", picture, min_score=0.0, threads=1, **options)
        assert len(found.objects) == len(expected.objects) > 10
        for one, other in zip(found.objects, expected.objects):
            assert one.name == other.name
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert one.box == pytest.approx(other.box, abs=0.05)


@pytest.mark.long
def test_an_exported_segmenter(dense, picture, tmp_path):
    pytest.importorskip("onnxruntime")
    file = dense("segmentation", "fpn", short_side=48, window=None, stride=None)
    metala_vision.export(file, tmp_path / "m.onnx")
    (expected,) = metala_vision.predict(file, picture)
    (found,) = metala_vision.predict(tmp_path / "m.onnx", picture, threads=1)
    assert (found.class_map == expected.class_map).mean() > 0.999
    metala_vision.export(file, tmp_path / "fixed.onnx", dynamic=("batch",))
    with pytest.raises(InputError, match="takes images of 64x64 pixels alone; export it with the size open"):
        metala_vision.predict(tmp_path / "fixed.onnx", picture)


@pytest.mark.long
def test_a_file_of_one_size_and_batch(classifier, picture, tmp_path):
    pytest.importorskip("onnxruntime")
    metala_vision.export(classifier, tmp_path / "m.onnx", dynamic=(), img_size=(48, 80))
    expected = metala_vision.predict(classifier, [picture, picture[:50]], img_size=(48, 80))
    found = metala_vision.predict(tmp_path / "m.onnx", [picture, picture[:50]], threads=1)
    for one, other in zip(found, expected, strict=True):
        assert probabilities(one) == pytest.approx(probabilities(other), abs=1e-5)
    with pytest.raises(InputError, match="img_size: got 64, but .* takes images of 48x80 pixels alone"):
        metala_vision.predict(tmp_path / "m.onnx", picture, img_size=64)


def test_a_model_of_timm(picture):
    """Any that has classes; those of ImageNet's weights have names."""
    (found,) = metala_vision.predict("deit_tiny_patch16_224", picture, top_k=2, depth=1, img_size=64)
    assert all(name.startswith("class ") for name, _ in found.classes)
    names = imagenet_names(timm.create_model("deit_tiny_patch16_224", depth=1))
    assert (len(names), names[207]) == (1000, "golden retriever")
    assert imagenet_names(timm.create_model("deit_tiny_patch16_224", depth=1, num_classes=7)) is None


def test_what_is_said(folder):
    found = Prediction("a.jpg", 4, 6, classes=[ClassFound("cat", 0.75), ClassFound("dog", 0.25)])
    assert str(found) == "a.jpg (4x6): cat 0.750, dog 0.250"
    assert found.record()["classes"][1] == dict(name="dog", probability=0.25)
    assert [row["rank"] for row in found.rows()] == [1, 2]
    found = Prediction("clip.mp4#3", 4, 6, objects=[ObjectFound("cat", 0.5, (1.0, 2.0, 3.0, 4.0))], seconds=0.1)
    assert str(found) == "clip.mp4#3 (4x6): 1 object: cat 0.50 at 1,2,3,4"
    assert found.record()["objects"] == [dict(name="cat", score=0.5, box=[1.0, 2.0, 3.0, 4.0])]
    assert found.rows()[0]["bottom"] == 4.0
    assert found._replace(objects=[]).rows() == []
    failed = Prediction("b.jpg", error="no picture")
    assert str(failed) == "b.jpg: not read: no picture"
    assert failed.record() == dict(image="b.jpg", error="no picture")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(top_k=0), "top_k: got 0, expected a whole number of at least 1"),
        (dict(tile=8), "tile: got 8, expected a whole number of at least 32"),
        (dict(min_score=2), "min_score: got 2, expected a number from 0 to 1"),
        (
            dict(runtime="onnxruntime"),
            "runtime: got 'onnxruntime' for .*expected a file that ends in .onnx or .xml or .pt2",
        ),
        (dict(pretrained=True), "pretrained: got it for"),
        (dict(threads=-3), "threads: got -3, expected a whole number of at least 1"),
        (dict(img_size=0), "img_size: got 0, expected a whole number of at least 1"),
        (dict(device="tpu"), "device: got 'tpu', expected auto, cpu"),
        (dict(every=0), "every: got 0, expected a whole number of at least 1"),
        (dict(images="none.jpg"), "images: got 'none.jpg', which is no file, no folder and no pattern"),
        (dict(images=3), "images: got a int, expected paths"),
        (dict(images=np.zeros((3, 4, 4), np.uint8)), r"images: got an array \(3, 4, 4\) of uint8, expected"),
        (dict(images=np.zeros((4, 4, 3))), "images: got an array .* of float64"),
    ],
)
def test_what_does_not_fit(classifier, picture, arguments, message):
    """Before anything is read."""
    with pytest.raises(InputError, match=message):
        metala_vision.predict(classifier, **{"images": picture, **arguments})


def test_files_that_are_no_checkpoints(tmp_path, picture):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pickled.pth")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as file:
        file.writestr("a", "b")
    (tmp_path / "text.pth").write_text("no checkpoint")
    for name in ("pickled.pth", "zip.pth", "text.pth"):
        with pytest.raises(InputError, match=f"file: .*{name} is no checkpoint that can be read"):
            metala_vision.predict(tmp_path / name, picture)
    (tmp_path / "m.onnx").write_text("")
    with pytest.raises(InputError, match="device: got 'cuda' for .*m.onnx, which runs on the CPU"):
        open_source(tmp_path / "m.onnx", device="cuda")


def test_threads_are_given_back(classifier, picture):
    """A run on one thread, after which PyTorch has as many as before."""
    before, seen = torch.get_num_threads(), []
    predictor = metala_vision.Predictor(classifier, threads=1)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    try:
        list(predictor(picture))
    finally:
        handle.remove()
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_sources_that_do_not_fit(dense, tmp_path, picture):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="images: .*empty has no files that end in .jpg"):
        metala_vision.predict("metala_vit_nano", tmp_path / "empty")
    with pytest.raises(InputError, match="did you mean metala_vit_nano"):
        metala_vision.predict("metala_vit_nan", picture)
    with pytest.raises(InputError, match="with 0 classes, which names nothing"):
        metala_vision.predict("metala_vit_nano", picture, num_classes=0)
    with pytest.raises(InputError, match="takes images of 5 channels"):
        metala_vision.predict("metala_vit_nano", picture, in_chans=5)
    file = dense("detection", "fcos")
    with pytest.raises(InputError, match="img_size: got .*expected pixels of the shorter side"):
        metala_vision.predict(file, picture, img_size=(64, 96))
    with pytest.raises(InputError, match="arguments: got depth"):
        metala_vision.predict(file, picture, depth=3)
