"""The settings of a run against those given later: what differs is said, and what to write."""

import re

import pytest
import torch
from small_runs import DIGITS, SMALL

from metala_vision.engine import VisionRunner, apply_train_options, load_config
from metala_vision.engine.evaluation import evaluate_checkpoints
from metala_vision.engine.run.settings import config_beside, differences, trained_settings
from metala_vision.errors import InputError

ROW = {"model.backbone.scan": "row", "train_cfg.max_epochs": 1}


@pytest.fixture
def run(run_small, tmp_path):
    """The folder of a run that was trained with options."""
    run_small(ROW)
    return tmp_path / "run"


@pytest.mark.long
def test_a_test_with_another_model_names_what_differs(run, tmp_path):
    """Catches 100 keys where one setting is wrong, and a setting that no weight shows: other scans, other results."""
    best = run / "best.pth"
    for options, message in (
        ({}, "scan: 'row' in the run, not set now\nits run has left"),
        ({"model.backbone.scan": "cross"}, "scan: 'row' in the run, 'cross' now"),
        ({**ROW, "model.backbone.depth": 3}, "depth: 2 in the run, 3 now"),
        ({**ROW, "model.backbone.num_classes": 7}, "num_classes: 10 in the run, 7 now"),
    ):
        config = run / "metala_vit_digits.py"
        left = f"its run has left {config}; write `python tools/test.py {config} {best}`"
        with pytest.raises(InputError) as raised:
            evaluate_checkpoints(load_config(str(DIGITS), {**SMALL, **options}), [str(best)], str(tmp_path / "out"))
        assert message in str(raised.value)
        assert left in str(raised.value)
    assert not (tmp_path / "out").exists()
    free = {"model.backbone.drop_path_rate": 0.3, "model.label_smoothing": 0.0, "model.backbone.img_size": 16}
    evaluate_checkpoints(load_config(str(DIGITS), {**SMALL, **ROW, **free}), [str(best)], str(tmp_path / "out"))


@pytest.fixture
def tool(load_tool):
    """Runs tools/test.py in this process: tool(*arguments) -> its result."""
    return load_tool("test.py")


@pytest.mark.long
def test_a_checkpoint_is_tested_without_a_config(run, tool, tmp_path, capsys):
    """Catches that the config which a run leaves cannot be read, is not found, or asks for the run's processes."""
    result = tool(str(run / "best.pth"), "--device", "cpu")
    assert result["checkpoint"] == str(run / "best.pth")
    left = run / "metala_vit_digits.py"
    left.write_text(f"{left.read_text()}\nlauncher = 'pytorch'\n")  # as torchrun's runs leave it
    assert tool(str(run / "best.pth"), "--device", "cpu")["top1"] == result["top1"]
    left.rename(tmp_path / "x.py")
    (run / "other.py").write_text("model = dict(")
    with pytest.raises(InputError, match="that of the run is not beside .*; write `python tools/test.py CONFIG .*best"):
        tool(str(run / "best.pth"))
    with pytest.raises(InputError, match="(?s)with another model:.*its config is not beside .*best.pth; give these"):
        tool(str(DIGITS), str(run / "best.pth"))
    with pytest.raises(SystemExit):
        tool(str(DIGITS))
    assert "required: checkpoints" in capsys.readouterr().err


def test_resume_with_another_model_names_what_differs(run, small_config):
    """Catches 100 keys, and a failed attempt that overwrites the config of the run."""
    before = (run / "metala_vit_digits.py").read_text()
    wanted = (
        f"config: {run}/last.pth was trained with another model:\n  model.backbone.depth: 2 in the run, 3 now\n"
        f"its run has left {run}/metala_vit_digits.py; "
        f"write `python tools/train.py {run}/metala_vit_digits.py --resume {run}/last.pth`"
    )
    with pytest.raises(InputError) as raised:
        small_config({**ROW, "model.backbone.depth": 3}, resume="auto")
    assert str(raised.value) == wanted
    with pytest.raises(InputError, match="has other rates"):
        VisionRunner.from_cfg(small_config({**ROW, "optim_wrapper.optimizer.lr": 1.0}, resume="auto")).train()
    assert (run / "metala_vit_digits.py").read_text() == before


@pytest.mark.long
def test_a_resumed_run_keeps_its_config(run, run_small, small_config, tmp_path):
    """Catches a config that begins a new run from the old one's weights, and changes that nobody hears of."""
    before = (run / "metala_vit_digits.py").read_text()
    options = {**ROW, "train_cfg.max_epochs": 2, "model.label_smoothing": 0.0}
    run_small(options, resume="auto")
    assert (run / "metala_vit_digits.py").read_text() == before
    said = "".join(path.read_text() for path in run.rglob("*.log"))
    assert "goes on with other settings:\n  model.label_smoothing: 0.1 in the run, 0.0 now" in said
    VisionRunner.from_cfg(small_config(options, resume=str(run / "last.pth"), work_dir=str(tmp_path / "copied")))
    assert (tmp_path / "copied" / "metala_vit_digits.py").read_text() == before
    (run / "metala_vit_digits.py").unlink()
    VisionRunner.from_cfg(small_config(options, resume="auto"))
    config = load_config(str(run / "metala_vit_digits.py"))
    assert "load_from" not in config
    apply_train_options(config, work_dir=str(tmp_path / "anew"))
    assert not config.get("resume")


def test_settings_are_read_and_not_run(tmp_path):
    """Catches that a checkpoint, which comes from anybody, brings code with it."""
    mark = tmp_path / "ran"
    text = "model = dict(backbone=dict(a=-1, b=[1, dict(c='d')], e={'f-g': (1.5, None)}, h=inf))"
    assert trained_settings({"meta": {"cfg": f"{text}\nx = open({str(mark)!r}, 'w')"}}) == {}
    assert not mark.exists()
    known = trained_settings({"meta": {"cfg": text}})
    assert known == {
        "model": {"backbone": {"a": -1, "b": [1, {"c": "d"}], "e": {"f-g": [1.5, None]}, "h": float("inf")}}
    }
    for other in ({}, {"meta": 1}, {"meta": {}}, {"meta": {"cfg": "model = ("}}, {"meta": torch.zeros(1)}):
        assert trained_settings(other) == {}


def test_of_several_configs_that_of_the_model(tmp_path):
    for name, depth in (("a", 2), ("b", 3), ("c", 2)):
        (tmp_path / f"{name}.py").write_text(f"model = dict(depth={depth})\n")
    (tmp_path / "notes.py").write_text("print('no config')")
    checkpoint = {"meta": {"cfg": "model = dict(depth=3, init_from='x')"}}
    assert config_beside(tmp_path / "last.pth", checkpoint) == tmp_path / "b.py"
    assert config_beside(tmp_path / "last.pth", {}) is None
    found = differences(
        {"a": 1, "b": {"c": (1, 2), "d": 3}}, {"a": 1, "b": {"c": [1, 2], "e": 3}}, re.compile(r"b\.e|d")
    )
    assert list(found) == ["model.b.d"], "tuples are lists, and a key counts by all of its name"
