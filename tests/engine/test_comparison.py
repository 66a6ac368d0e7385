"""Runs of several seeds put together, by hand-made results."""

import json
import statistics

import pytest

from metala_vision.engine.comparison import gather, render
from metala_vision.errors import InputError


@pytest.fixture
def runs(tmp_path):
    """make(name, seed, top1, seconds, **changes) -> work_dir."""

    def make(name, seed, top1, seconds, **changes):
        folder = tmp_path / f"{name}_{seed}"
        folder.mkdir()
        result = dict(model="m", parameters=1000, dataset="D", images=10, epochs=2, threads=1, seed=seed)
        result |= {} if top1 is None else dict(top1=top1)
        (folder / "result.json").write_text(json.dumps({**result, **changes}))
        records = [dict(epoch=i + 1, iter=50 * (i + 1), seconds=s) for i, s in enumerate(seconds)]
        (folder / "history.json").write_text(json.dumps(records))
        return folder

    return make


def test_mean_deviation_and_times(runs):
    machine = dict(environment=dict(processor="P"))
    folders = [runs("a", 1, 70.0, (10, 20), **machine), runs("a", 0, 80.0, (30, 40)), runs("a", 2, 75.5, (11, 12))]
    (row,) = gather({"ours": folders})
    assert row["seeds"] == [0, 1, 2]
    assert row["top1"] == [80.0, 70.0, 75.5]
    assert row["mean"] == round(statistics.mean((80, 70, 75.5)), 2)
    assert row["deviation"] == round(statistics.stdev((80, 70, 75.5)), 2)
    assert row["seconds_per_epoch"] == dict(median=16.0, low=10.0, high=40.0)
    assert row["milliseconds_per_step"] == dict(median=320.0, low=200.0, high=800.0)
    assert row["environments"] == [None, dict(processor="P"), None]
    text = render([row])
    assert "| ours | 1 k | 80.00, 70.00, 75.50 | 75.17 | 5.01 | 16 (10 to 40) | 320 |" in text
    (single,) = gather({"one": folders[:1]})
    assert single["deviation"] is None
    assert render([single])


def test_what_does_not_belong_together(runs, tmp_path):
    first = runs("a", 0, 70.0, (1, 2))
    with pytest.raises(InputError, match=r"x: two runs have the same seed, \[0, 0\]"):
        gather({"x": [first, runs("b", 0, 71.0, (1, 2))]})
    with pytest.raises(InputError, match="x: the runs differ in parameters"):
        gather({"x": [first, runs("c", 1, 71.0, (1, 2), parameters=999)]})
    with pytest.raises(InputError, match="x: its runs have no top1; expected those of classifiers"):
        gather({"x": [runs("d", 1, None, (1, 2))]})
    with pytest.raises(InputError, match="no finished run there, result.json is missing"):
        gather({"x": [tmp_path]})
    with pytest.raises(InputError, match="x: no such folder"):
        gather({"x": []})
    (first / "history.json").write_text("{")
    with pytest.raises(InputError, match="history.json: no JSON"):
        gather({"x": [first]})
