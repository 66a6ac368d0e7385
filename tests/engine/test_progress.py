"""What is said of a run while it goes on."""

import re

import pytest
from sinks import check_sinks

from metala_vision.engine import VisionRunner
from metala_vision.engine.run.schedule import warn_of_end

BY_STEP = dict(type="LinearLR", by_epoch=False, end=500)
WARM_UP, COSINE = dict(type="LinearLR", end=5), dict(type="CosineAnnealingLR", begin=5, end=30)


@pytest.mark.long
def test_every_place_shows_the_numbers_of_the_history(small_config, tmp_path, capsys):
    """Catches a validation loss that is a mean over epochs, and one tag for two things or with two kinds of steps.

    With rates by layer, of which the first is not that of the history.
    """
    decay = {"optim_wrapper.paramwise_cfg": dict(layer_decay=0.5)}
    options = {"train_cfg.max_epochs": 3, "param_scheduler.1.end": 3, **decay}
    halted = VisionRunner.from_cfg(small_config(options))
    halted.train_loop._max_epochs = 2
    halted.train_and_test()
    VisionRunner.from_cfg(small_config(options, resume="auto")).train_and_test()
    console = capsys.readouterr().out
    records = check_sinks(tmp_path / "run", console)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    losses = [record["val/loss"] for record in records]
    assert losses[0] > losses[1] > losses[2]
    assert "data: Digits, 10 classes; images: 1258 to train, 180 to validate, 359 to test" in console
    assert "Hooks will be executed" not in console
    assert "Config:" not in console
    assert len(console.splitlines()) < 40
    logs = "".join(path.read_text() for path in (tmp_path / "run").glob("*/*.log"))
    assert "Hooks will be executed" in logs
    assert "Config:" in logs
    assert "will be deprecated" not in logs + console


def test_the_end_of_the_schedule_is_the_last_thing_said(small_config, capsys):
    """Catches a warning that is buried under what comes after it."""
    runner = VisionRunner.from_cfg(small_config({"param_scheduler.1.end": 5}))
    runner.train_and_test()
    lines = capsys.readouterr().out.splitlines()
    before = lines[: next(i for i, line in enumerate(lines) if "Epoch(train)" in line)]
    assert "the schedule ends with epoch 5 and training with epoch 2" in before[-1]


@pytest.mark.parametrize(
    ("schedulers", "epochs", "advice"),
    [
        ([WARM_UP, COSINE], 30, None),
        ([WARM_UP, COSINE], 100, "set param_scheduler.1.end=100, from"),
        ([WARM_UP, COSINE], 12, "set param_scheduler.1.end=12, from"),
        ([WARM_UP, COSINE], 6, "set param_scheduler.0.end=1 param_scheduler.1.begin=1 param_scheduler.1.end=6, from"),
        ([WARM_UP, COSINE], 2, "set param_scheduler.0.end=1 param_scheduler.1.begin=1 param_scheduler.1.end=2, from"),
        ([WARM_UP, COSINE], 1, "give the config a schedule without a warm-up by epochs"),
        (dict(type="CosineAnnealingLR", end=30), 3, "set param_scheduler.end=3, from"),
        ([BY_STEP, dict(type="MultiStepLR", milestones=[8, 11])], 12, None),
        ([BY_STEP, dict(type="CosineAnnealingLR", end=4)], 4, "with step 400: .*, set param_scheduler.0.end=40, from"),
        ([BY_STEP, dict(type="MultiStepLR", milestones=[2])], 4, "the warm-up ends with step 500 and training with"),
        (dict(type="CosineAnnealingLR", by_epoch=False, end=500), 4, "schedule ends.*set param_scheduler.end=400,"),
        (dict(type="CosineAnnealingLR", by_epoch=False, end=400), 4, None),
        (None, 12, None),
    ],
)
def test_advice_leaves_room_for_the_warm_up(schedulers, epochs, advice, monkeypatch):
    """Catches advice that ends a schedule before it begins, and a warm-up that is longer than the run."""
    said = []
    monkeypatch.setattr("metala_vision.engine.run.schedule.print_log", lambda text, **_: said.append(text))
    warn_of_end(schedulers, epochs, 100 * epochs)
    assert [re.search(advice, text) is not None for text in said] == ([True] if advice else [])
