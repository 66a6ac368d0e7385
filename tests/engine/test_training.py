"""A run from end to end in this process, and what it leaves behind."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.logging import HistoryBuffer
from PIL import Image
from small_runs import OWN_CONFIGS, assert_same_checkpoint

from metala_vision.engine import ClassificationMetric, ImagePreprocessor, load_config
from metala_vision.engine.run.hooks import history


@pytest.fixture
def finished(run_small):
    return run_small()


@pytest.mark.long
def test_run_leaves_everything_behind(finished):
    runner, result = finished
    folder = Path(runner.work_dir)
    for name in ("last.pth", "best.pth", "history.json", "curves.png", "confusion_matrix.png", "metala_vit_digits.py"):
        assert (folder / name).is_file(), name
    assert not list(folder.rglob("*.tmp"))
    records = json.loads((folder / "history.json").read_text())
    assert [record["epoch"] for record in records] == [1, 2]
    assert set(records[0]) == {
        *("epoch", "iter", "lr", "train/loss", "seconds", "val/top1", "val/top5", "val/loss"),
        *(f"val/{key}" for key in ("data_time", "time") if f"val/{key}" in records[0]),
    }
    with Image.open(folder / "curves.png") as picture:
        assert picture.size[0] > 800
    assert json.loads(json.dumps(result)) == result
    assert result["images"] == 359
    assert result["model"] == "metala_vit_nano"
    assert 0 <= result["top1"] <= result["top5"] <= 100
    assert result["environment"]["torch"] == torch.__version__
    scalars = list(folder.glob("*/vis_data/scalars.json"))
    assert scalars
    assert scalars[0].read_text()
    assert list(folder.glob("*/vis_data/events.out.tfevents*"))


@pytest.mark.long
def test_checkpoint_is_plain(finished):
    """Another process, without this package or mmengine, loads it with weights_only=True."""
    runner, _ = finished
    code = (
        "import sys, torch; c = torch.load(sys.argv[1], weights_only=True);"
        "assert 'mmengine' not in sys.modules; print(sorted(c), c['meta']['epoch'])"
    )
    for name in ("last.pth", "best.pth"):
        out = subprocess.run(
            [sys.executable, "-I", "-c", code, f"{runner.work_dir}/{name}"], capture_output=True, text=True, check=True
        )
        assert "state_dict" in out.stdout
        assert "optimizer" in out.stdout


def test_trap_mmengine_pickles_classes(finished, tmp_path):
    """The trap itself: what mmengine would have written, torch.load refuses by default."""
    runner, _ = finished
    assert any(isinstance(buffer, HistoryBuffer) for buffer in runner.message_hub.log_scalars.values())
    torch.save(runner.message_hub.state_dict(), tmp_path / "raw.pth")
    with pytest.raises(Exception, match="(?i)weights.only"):
        torch.load(tmp_path / "raw.pth", weights_only=True)


@pytest.mark.long
def test_timm_loads_the_checkpoint(finished):
    """The weights of a run are a timm checkpoint, and give the same logits."""
    runner, _ = finished
    arguments = dict(runner.cfg.model.backbone)
    model = timm.create_model(
        arguments.pop("model_name"), **arguments, checkpoint_path=f"{runner.work_dir}/best.pth"
    ).eval()
    x = torch.randn(3, 1, 8, 8)
    runner.model.eval()
    with torch.inference_mode():
        assert torch.equal(model(x), runner.model.backbone(x))


def test_resume_equals_straight_run(run_small, tmp_path):
    """Bit for bit: weights, optimiser and schedule, with drop path and augmentation on."""
    four = {"param_scheduler.1.end": 4, "train_cfg.max_epochs": 4}
    straight, _ = run_small(four, work_dir=str(tmp_path / "straight"))
    run_small({**four, "train_cfg.max_epochs": 2}, work_dir=str(tmp_path / "parts"))
    resumed, result = run_small(four, work_dir=str(tmp_path / "parts"), resume="auto")
    assert_same_checkpoint(tmp_path / "straight" / "last.pth", tmp_path / "parts" / "last.pth")
    keep = ("epoch", "iter", "lr", "train/loss", "val/top1", "val/loss")
    records = [[{k: r[k] for k in keep} for r in history(runner)] for runner in (straight, resumed)]
    assert records[0] == records[1]
    assert len(records[0]) == 4
    assert result["best_epoch"] == straight.message_hub.get_info("best_epoch")


@pytest.mark.long
def test_seeds_differ(run_small, tmp_path):
    weights = []
    for seed in (0, 1):
        runner, result = run_small({"train_cfg.max_epochs": 1}, work_dir=str(tmp_path / str(seed)), seed=seed)
        assert result["seed"] == seed
        weights.append(runner.model.backbone.head.weight.detach().clone())
    assert not torch.equal(*weights)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_amp_on_cpu(run_small, dtype):
    """mmengine's own AMP wrapper asserts a GPU. Forward runs in half precision, weights stay float32 and finite."""
    runner, _ = run_small({"train_cfg.max_epochs": 1}, amp=dtype, device="cpu")
    assert type(runner.optim_wrapper).__name__ == "AutocastOptimWrapper"
    with runner.optim_wrapper.optim_context(runner.model):
        assert runner.model.backbone(torch.randn(2, 1, 8, 8)).dtype == getattr(torch, dtype)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in runner.model.parameters())
    assert np.isfinite([record["train/loss"] for record in history(runner)]).all()


@pytest.mark.long
@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "float16"])
def test_amp_resumes(run_small, tmp_path, dtype):
    """Without naming the precision again, and with float16's loss scale where it was."""
    run_small(amp=dtype, work_dir=str(tmp_path / "straight"))
    run_small({"train_cfg.max_epochs": 1}, amp=dtype, work_dir=str(tmp_path / "parts"))
    resumed, _ = run_small(work_dir=str(tmp_path / "parts"), resume="auto")
    assert resumed.optim_wrapper.dtype == getattr(torch, dtype)
    assert_same_checkpoint(tmp_path / "straight" / "last.pth", tmp_path / "parts" / "last.pth")


def test_weight_decay_spares_vectors(finished):
    runner, _ = finished
    groups = runner.optim_wrapper.optimizer.param_groups
    assert len(groups) == 2
    for group in groups:
        assert {p.ndim <= 1 for p in group["params"]} == {group["weight_decay"] == 0.0}
    assert sum(len(group["params"]) for group in groups) == len(list(runner.model.parameters()))


def test_metric_against_a_hand_count():
    metric = ClassificationMetric()
    logits = torch.tensor([[3.0, 1, 2, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6], [1, 0, 0, 0, 0, 0, 0], [0] * 7])
    labels = torch.tensor([0, 0, 1, 0])
    metric.process({}, [dict(logits=logits, labels=labels)])
    metric.process({}, [dict(logits=logits[:0], labels=labels[:0])])
    result = metric.evaluate(4)
    assert result["top1"] == 50.0  # the first, and the last, whose scores are all equal
    assert result["top5"] == 75.0  # the second has class 0 in the last place
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert result["loss"] == pytest.approx(expected, rel=1e-6)
    assert metric.confusion.sum() == 4
    assert metric.confusion[0].tolist() == [2, 0, 0, 0, 0, 0, 1]
    assert metric.confusion[1].tolist() == [1, 0, 0, 0, 0, 0, 0]


def test_preprocessor_normalises():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    out = ImagePreprocessor(mean, std)(dict(inputs=images, labels=torch.zeros(2), errors=["x"]))
    expected = (images[:, 1].double() / 255 - 0.2) / 0.5
    torch.testing.assert_close(out["inputs"][:, 1].double(), expected, rtol=1e-5, atol=1e-6)
    assert out["errors"] == ["x"]
    assert not ImagePreprocessor(mean, std).state_dict()


@pytest.mark.parametrize("path", OWN_CONFIGS, ids=lambda p: p.stem)
def test_every_config_reads(path):
    config = load_config(str(path))
    known = ("ImageClassifier", "ImageDetector", "ImageSegmenter", "SequenceModel", "Linearization")
    assert config.model.type in known
    assert "Command:" in path.read_text(), "a config says how to run it"
