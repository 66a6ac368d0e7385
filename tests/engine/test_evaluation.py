"""Testing checkpoints: several, at several resolutions, by weights and by average, and the reports of it."""

import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support
from small_runs import DIGITS, SMALL
from tool_process import run_tool

import metala_vision
from metala_vision.data import Digits, EvalTransform
from metala_vision.engine import VisionRunner, load_config
from metala_vision.engine.browse import browse
from metala_vision.engine.dry_run import dry_run
from metala_vision.engine.evaluation import evaluate_checkpoints, render
from metala_vision.engine.metrics.classification import ClassificationMetric, per_class
from metala_vision.engine.metrics.plots import plot_confusion, plot_images
from metala_vision.errors import InputError

MODEL = dict(model_name="metala_vit_nano", embed_dim=32, depth=2, num_heads=2, patch_size=2)
OPTIONS = {key: value for key, value in SMALL.items() if key.startswith(("model", "test"))}


def make(name: str, seed: int, **kwargs) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=10, in_chans=1, img_size=8, **kwargs).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.fixture
def checkpoints(tmp_path):
    """A run with an average, and weights alone, of one model: two folders, the same file name."""
    paths = []
    for i in range(2):
        options = {key: value for key, value in MODEL.items() if key != "model_name"}
        models = [make("metala_vit_nano", seed=10 * i + j, **options) for j in range(2)]
        checkpoint = models[0].state_dict()
        if i == 0:
            checkpoint = dict(state_dict=checkpoint, state_dict_ema=models[1].state_dict())
        path = tmp_path / f"run{i}" / "best.pth"
        path.parent.mkdir()
        torch.save(checkpoint, path)
        paths.append((str(path), models))
    return paths


@pytest.fixture
def config():
    return load_config(str(DIGITS), OPTIONS)


def top1(model: torch.nn.Module, size: int | tuple[int, int], crop_ratio: float = 1.0) -> float:
    """By hand: every test image through the transform and the model."""
    data = Digits("test", transform=EvalTransform(size, crop_ratio))
    images = torch.stack([data[i]["image"] for i in range(len(data))]).float() / 255
    with torch.inference_mode():
        predicted = model((images - 0.3053) / 0.3760).argmax(1).numpy()
    return 100 * (predicted == data.labels).mean()


@pytest.mark.long
def test_checkpoints_by_resolutions(config, checkpoints, tmp_path):
    """Each accuracy is the one computed by hand, for the average where there is one."""
    out = tmp_path / "out"
    paths = [path for path, _ in checkpoints]
    results = evaluate_checkpoints(config, paths, str(out), resolutions=(8, 12))
    assert [(r["checkpoint"], r["img_size"], r["weights"]) for r in results] == [
        (path, size, weights) for path, weights in zip(paths, ("ema", "raw")) for size in (8, 12)
    ]
    for result, (model, size) in zip(
        results, [(m, s) for m in (checkpoints[0][1][1], checkpoints[1][1][0]) for s in (8, 12)]
    ):
        assert result["top1"] == pytest.approx(top1(model, size), abs=0.3)
        assert result["images"] == 359
    assert len({r["top1"] for r in results}) > 1
    assert json.loads((out / "result.json").read_text()) == results
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [float(row["top1"]) for row in rows] == [r["top1"] for r in results]
    with Image.open(out / "resolutions.png") as picture:
        assert picture.size[0] > 500
    for name in ("run0_best_8", "run0_best_12", "run1_best_8", "run1_best_12"):
        assert (out / name / "confusion_matrix.png").is_file()
        report = list(csv.DictReader((out / name / "per_class.csv").read_text().splitlines()))
        assert sum(int(row["images"]) for row in report) == 359
    assert all(str(r["img_size"]) in render(results) for r in results)


def test_weights_and_crop(config, checkpoints, tmp_path):
    path, models = checkpoints[0]
    for weights, model in (("raw", models[0]), ("ema", models[1])):
        (result,) = evaluate_checkpoints(config, [path], str(tmp_path / weights), weights=weights, crop_ratio=0.5)
        assert result["top1"] == pytest.approx(top1(model, 8, 0.5), abs=0.3)
        assert result["crop_ratio"] == 0.5
        assert (tmp_path / weights / "confusion_matrix.png").is_file(), "one pair needs no folder of its own"
    with pytest.raises(InputError, match="holds no moving average; use raw"):
        evaluate_checkpoints(config, [checkpoints[1][0]], str(tmp_path / "x"), weights="ema")
    with pytest.raises(InputError, match="weights: got 'best', expected one of"):
        evaluate_checkpoints(config, [path], str(tmp_path / "y"), weights="best")


def test_errors_come_before_anything_is_tested(config, checkpoints, tmp_path):
    paths = [path for path, _ in checkpoints]
    out = tmp_path / "out"
    with pytest.raises(InputError, match="checkpoint: no file none.pth"):
        evaluate_checkpoints(config, [*paths, "none.pth"], str(out))
    with pytest.raises(InputError, match="--resolutions: got 8 8, expected none twice"):
        evaluate_checkpoints(config, paths, str(out), resolutions=(8, 8))
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="(?s)other.pth: checkpoint: it is of another model"):
        evaluate_checkpoints(config, [*paths, str(tmp_path / "other.pth")], str(out))
    with pytest.raises(InputError, match="run1/best.pth: weights: got 'ema', but"):
        evaluate_checkpoints(config, paths, str(out), weights="ema")
    with pytest.raises(InputError, match="the same file is named twice"):
        evaluate_checkpoints(config, [paths[0], paths[0]], str(out))
    assert not out.exists()
    run = Path(paths[0]).parent
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    with pytest.raises(InputError, match="--out: .*run0 is the folder of a run, with .* in it.*name another, such as"):
        evaluate_checkpoints(config, paths, str(run))
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before
    out.write_text("")
    with pytest.raises(InputError, match="--out: .*out is a file; name a folder"):
        evaluate_checkpoints(config, paths, str(out))


def test_results_so_far_are_kept(config, checkpoints, tmp_path, monkeypatch):
    """The third of three resolutions does not fit the memory: the other two are written."""
    evaluate, left = VisionRunner.evaluate, [None, None]

    def fails_later(self):
        if not left:
            raise torch.OutOfMemoryError("CUDA out of memory")
        left.pop()
        return evaluate(self)

    monkeypatch.setattr(VisionRunner, "evaluate", fails_later)
    with pytest.raises(InputError, match="memory: 64 images of this size do not fit: .*test_dataloader.batch_size"):
        evaluate_checkpoints(config, [checkpoints[0][0]], str(tmp_path), resolutions=(8, 10, 12))
    assert [r["img_size"] for r in json.loads((tmp_path / "result.json").read_text())] == [8, 10]
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3


def test_position_embedding_follows_the_resolution(tmp_path):
    """timm's ViT at twice its size: by hand with set_input_size."""
    model = make("vit_tiny_patch16_224", 3, patch_size=2, embed_dim=32, depth=2, num_heads=2)
    path = str(tmp_path / "vit.pth")
    torch.save(model.state_dict(), path)
    changed = {"model.backbone.model_name": "vit_tiny_patch16_224", "model.backbone.num_heads": 2}
    config = load_config(str(DIGITS), {**OPTIONS, **changed})
    (result,) = evaluate_checkpoints(config, [path], str(tmp_path / "out"), resolutions=(16,))
    model.set_input_size(img_size=(16, 16))
    assert result["top1"] == pytest.approx(top1(model, 16), abs=0.3)


@pytest.mark.long
@pytest.mark.parametrize("name", ["metala_vit_nano", "vit_tiny_patch16_224"])
def test_sizes_that_are_not_square(name, tmp_path):
    """Height by width in results, tables and folders; a position embedding of the same shape."""
    model = make(name, 3, patch_size=2, embed_dim=32, depth=2, num_heads=2)
    with torch.no_grad():
        for p in model.parameters():  # not one class for all images
            p.add_(torch.randn_like(p) * 0.3)
    path = str(tmp_path / "run.pth")
    torch.save(model.state_dict(), path)
    config = load_config(str(DIGITS), {**OPTIONS, "model.backbone.model_name": name, "model.backbone.num_heads": 2})
    results = evaluate_checkpoints(config, [path], str(tmp_path / "out"), resolutions=(8, (16, 8), (8, 16)))
    scores = {result["img_size"]: result["top1"] for result in results}
    for size in ((16, 8), (8, 16)):
        if name.startswith("vit"):
            model.set_input_size(img_size=size)
        assert scores[size] == pytest.approx(top1(model, size), abs=0.3)
    assert len(set(scores.values())) > 1
    assert [r["img_size"] for r in json.loads((tmp_path / "out" / "result.json").read_text())] == [8, [16, 8], [8, 16]]
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert [row["img_size"] for row in rows] == ["8", "16x8", "8x16"]
    assert "16x8" in render(results)
    assert (tmp_path / "out" / "16x8" / "per_class.csv").is_file()
    assert (tmp_path / "out" / "resolutions.png").is_file()


def test_per_class_against_scikit_learn():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 6, 300), rng.integers(0, 5, 300)  # class 5 is never predicted
    true[true == 2] = 1  # and class 2 never true
    confusion = np.zeros((7, 7), dtype=int)  # class 6 neither
    np.add.at(confusion, (true, predicted), 1)
    rows = per_class(confusion, "abcdefg")
    reference = precision_recall_fscore_support(true, predicted, labels=range(7), zero_division=np.nan)
    for row, precision, recall, f1, images in zip(rows, *reference):
        assert row["images"] == images
        for key, value in (("precision", precision), ("recall", recall), ("f1", f1)):
            if np.isnan(value):
                assert row[key] is None
            else:
                assert row[key] == pytest.approx(100 * value, abs=0.006)
    assert (rows[6]["precision"], rows[6]["recall"], rows[6]["f1"]) == (None, None, None)


def test_logits_that_are_no_numbers_are_wrong():
    """Catches their first class taken for class 0, which may make a model that has diverged the best."""
    metric = ClassificationMetric()
    logits = torch.eye(3)[[0, 1, 2, 0]]
    logits[0, 1] = math.nan
    metric.process({}, [dict(logits=logits, labels=torch.tensor([0, 1, 2, 1]))])
    found = metric.evaluate(4)
    assert found["top1"] == 50.0
    assert math.isnan(found["loss"])
    assert metric.confusion.tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert metric.images == 4


def test_class_names_of_any_letters_are_drawn(tmp_path):
    """Catches formulas, which matplotlib makes of what is between two dollars, and fails at."""
    classes = ["a$^$b", "café", "$", "_"]
    plot_confusion(np.eye(4, dtype=int), classes, tmp_path / "confusion.png")
    plot_images([np.zeros((8, 8, 3), np.uint8)] * 4, classes, tmp_path / "images.png")


def test_browse(config, tmp_path):
    """The picture of mixed images, and values as the model gets them."""
    config = load_config(str(DIGITS), {**SMALL, "model.mixup": dict(mixup_alpha=0.8)})
    config.work_dir = str(tmp_path / "run")
    result = browse(config, "train", tmp_path / "batch.png", images=20)
    assert result["images"] == 20
    assert result["shape"] == [1, 8, 8]
    assert result["pixels"][0] == pytest.approx(-0.3053 / 0.3760, abs=0.01)
    with Image.open(tmp_path / "batch.png") as picture:
        assert len(picture.convert("L").getcolors(10**6)) > 50
    for options, message in [(dict(split="dev"), "--split: got 'dev'"), (dict(images=0), "--images: got 0")]:
        with pytest.raises(InputError, match=message):
            browse(config, **{"split": "val", "path": tmp_path / "x.png", **options})


@pytest.mark.long
def test_dry_run_tool(tmp_path, monkeypatch):
    """Two steps of each process, an estimate, and nothing left behind."""
    monkeypatch.chdir(tmp_path)
    done = run_tool("train.py", str(DIGITS), "--dry-run", "--amp", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["images_per_step"] == 64
    assert result["lr"] == 2e-3, "the rate, and not the first one of the warm-up"
    assert result["images"] == 1258
    assert result["epochs"] == 30
    assert result["hours"] == pytest.approx(30 * result["seconds_per_epoch"] / 3600, abs=0.01)
    assert 20 * result["seconds_per_batch_model"] < result["seconds_per_epoch"] + 0.1
    assert 0.2 < result["peak_memory_gb"] < 8
    assert "an epoch: " in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_dry_run_does_not_count_what_is_compiled_once(tmp_path):
    """Else the time of compiling would be that of every validation batch."""
    config = load_config(str(DIGITS), SMALL)
    config.work_dir = str(tmp_path)
    runner = VisionRunner.from_cfg(config)
    val_step, calls = runner.model.val_step, []

    def slow_once(batch):
        calls.append(time.sleep(0 if calls else 5))
        return val_step(batch)

    runner.model.val_step = slow_once
    assert dry_run(runner)["seconds_per_epoch"] < 5


def test_dry_run_of_fewer_images_than_two_batches(tmp_path):
    hooks = [dict(type="ModelEmaHook")]
    options = {"train_dataloader.batch_size": 2000, "optim_wrapper.accumulative_counts": 4, "custom_hooks": hooks}
    config = load_config(str(DIGITS), {**SMALL, **options})
    config.work_dir = str(tmp_path)
    result = dry_run(VisionRunner.from_cfg(config))
    assert result["images_per_step"] == 8000
    assert result["input"] == [1, 8, 8]


@pytest.fixture
def exported(checkpoints, tmp_path):
    """The average of the first checkpoint, as a file, at any size."""
    pytest.importorskip("onnxruntime")
    _, (_, model) = checkpoints[0]
    described = dict(task="classification", num_classes=10, label_names=None, input_size=[1, 8, 8])
    described |= dict(mean=[0.3053], std=[0.3760], interpolation="bicubic", dynamic=["batch", "size"])

    def write(**changed: object) -> str:
        file = tmp_path / "run0" / "best.onnx"
        metala_vision.export(model, file, img_size=8)
        written = onnx.load(file)
        del written.metadata_props[:]
        onnx.helper.set_model_props(written, {"metala_vision": json.dumps({**described, **changed})})
        onnx.save(written, file)
        return str(file)

    return write


@pytest.mark.long
def test_an_exported_file_beside_its_checkpoint(config, checkpoints, exported, tmp_path):
    """The same accuracy at every size, in folders of their own though the names are alike."""
    path, file = checkpoints[0][0], exported()
    found = evaluate_checkpoints(config, [path, file], str(tmp_path / "out"), resolutions=(8, (8, 12)))
    assert [r["weights"] for r in found] == ["ema", "ema", "onnxruntime", "onnxruntime"]
    assert [r["top1"] for r in found[2:]] == pytest.approx([r["top1"] for r in found[:2]], abs=0.3)
    assert (tmp_path / "out" / "best_onnx_8" / "confusion_matrix.png").is_file()
    assert (tmp_path / "out" / "best_pth_8x12" / "per_class.csv").is_file()


@pytest.mark.long
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(num_classes=7), "checkpoint: .*best.onnx has 7 classes, expected the config's 10"),
        (
            dict(dynamic=["batch"]),
            "checkpoint: .*best.onnx takes images of 8x8 pixels alone, and is tested at 12x12; export",
        ),
        (dict(dynamic=["size"]), "checkpoint: .*best.onnx takes one image at a time; set test_dataloader.batch_size=1"),
        (dict(task="features"), "checkpoint: .*best.onnx is of the task 'features', expected a classifier"),
    ],
    ids=str,
)
def test_exported_files_that_do_not_fit(config, exported, tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        evaluate_checkpoints(config, [exported(**changed)], str(tmp_path / "out"), resolutions=(8, 12))
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_test_tool_on_several(checkpoints, tmp_path):
    command = ["test.py", str(DIGITS), *(path for path, _ in checkpoints)]
    options = [f"{key}={value}" for key, value in OPTIONS.items()]
    out = tmp_path / "out"
    done = run_tool(*command, "--resolutions", "8", "10", "--out", str(out), "--json", "--cfg-options", *options)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 4
    assert json.loads(done.stdout) == json.loads(Path(out / "result.json").read_text())
