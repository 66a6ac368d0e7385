"""Sweeps: what they measure, what survives an interruption, and what a cell that fails does to the others."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from tool_process import run_tool
from torch import nn

from metala_vision.errors import InputError
from metala_vision.profiling.environment import environment
from metala_vision.profiling.speed import workers
from metala_vision.profiling.speed.isolated import Ended
from metala_vision.profiling.speed.steps import Cell, create
from metala_vision.profiling.speed.workers import Candidate, Setting
from metala_vision.profiling.sweep import report, sweep
from metala_vision.profiling.sweep.repeat import agreement, describe
from metala_vision.profiling.sweep.rows import derive
from metala_vision.profiling.sweep.store import Store
from metala_vision.profiling.sweep.sweep import Limits, Plan, automatic_batch
from metala_vision.profiling.sweep.throughput import Request, measure

ROOT = Path(__file__).resolve().parents[2]
TOOL = [sys.executable, str(ROOT / "tools" / "throughput.py")]
NANO, TINY = "metala_vit_nano", "vit_tiny_patch16_224"
QUICK = dict(batch=4, rounds=3, cell_seconds=20.0, threads=1)


# --- sweeps


def test_automatic_batch():
    assert [automatic_batch(size, "cpu") for size in (64, 224, 384, 512, 2048)] == [64, 8, 2, 1, 1]
    assert [automatic_batch(size, "cuda") for size in (224, 448, 1024, 4096)] == [256, 64, 8, 1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("sweep")
    request = Request([NANO, TINY], [32, 64], modes=["infer", "train"], sdpa=["default", "math"], **QUICK)
    return folder, measure(request, folder)


@pytest.mark.long
def test_rows(measured):
    """Catches a cell left out, rates that do not fit the times, memory of something else than the cell."""
    folder, result = measured
    assert result["complete"]
    assert result["baseline"] == Candidate(TINY)._asdict()
    rows = {(row["model"], row["sdpa"], row["mode"], row["size"]): row for row in result["rows"]}
    assert set(rows) == {
        (model, sdpa, mode, size)
        for model, sdpa in ((NANO, "default"), (TINY, "default"), (TINY, "math"))
        for mode in ("infer", "train")
        for size in (32, 64)
    }
    for (model, sdpa, _, size), row in rows.items():
        assert row["status"] == "ok"
        assert row["rounds"] == 3
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["milliseconds"], rel=1e-3)
        assert row["tokens_per_second"] == pytest.approx(row["images_per_second"] * (size // 16) ** 2, rel=1e-3)
        assert row["paired"]
        assert row["ratio"] == 1 or (model, sdpa) != (TINY, "default")
        assert row["peak_memory_mb"] > row["baseline_memory_mb"] > 50
        assert row["parameters"] == sum(p.numel() for p in timm.create_model(model, img_size=size).parameters())
    train, infer = (rows[TINY, "default", mode, 64]["peak_memory_mb"] for mode in ("train", "infer"))
    assert train > infer + 3 * 5.7 * 4  # gradients and two moments


def test_the_kernel_is_looked_for_after_the_memory(monkeypatch):
    """Catches memory of the profiler in a cell's, and one image alone for a batch norm that has nothing but images."""
    seen, look = [], workers.attention_that_ran
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3))
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    monkeypatch.setattr(workers, "create", lambda *_: model)
    monkeypatch.setattr(workers, "resident_memory", lambda: seen.append("memory") or (1, 2))
    monkeypatch.setattr(workers, "attention_that_ran", lambda run: seen.append("look") or look(run))
    sent, setting = [], Setting(threads=torch.get_num_threads())
    workers.probe(sent.append, Candidate("any"), Cell(32, 4, "float32", "train"), setting, 60.0)
    assert sent[-1]["attention"] is None
    assert seen == ["memory", "memory", "look"]


def test_files(measured):
    folder, result = measured
    assert json.loads((folder / "throughput.json").read_text())["rows"] == result["rows"]
    assert len((folder / "throughput.csv").read_text().splitlines()) == 1 + len(result["rows"])
    for mode in ("infer", "train"):
        assert (folder / f"throughput_{mode}_float32.png").read_bytes().startswith(b"\x89PNG")


def test_a_measured_cell_is_not_measured_again(measured, monkeypatch):
    folder, result = measured
    ran = []
    monkeypatch.setattr(sweep, "stream", lambda function, *args: ran.append(function))
    request = Request([NANO, TINY], [32, 64], modes=["infer", "train"], sdpa=["default", "math"], **QUICK)
    again = measure(request, folder)
    assert not ran
    assert again["rows"] == result["rows"]


def test_a_new_model_runs_beside_the_baseline(measured):
    """Its ratio is of rounds that the baseline ran too, and the baseline's own row stays what it was."""
    folder, _ = measured
    before = json.loads((folder / "cells.json").read_text())["cells"]
    more = measure(Request(["resnet18", TINY], [32], **QUICK), folder)
    resnet, tiny = more["rows"]
    assert (resnet["model"], resnet["status"], resnet["tokens_per_second"]) == ("resnet18", "ok", None)
    assert resnet["paired"]
    after = json.loads((folder / "cells.json").read_text())
    assert {key: after["cells"][key] for key in before} == before
    race = after["races"][next(row for row in after["cells"].values() if row["model"] == "resnet18")["race"]]
    mine, theirs = (next(race[key] for key in race if key.startswith(name)) for name in ("resnet18", TINY))
    assert resnet["ratio"] == pytest.approx(statistics.median(a / b for a, b in zip(theirs, mine)), rel=1e-3)
    assert len((folder / "throughput.csv").read_text().splitlines()) == 1 + len(after["cells"])


def test_another_environment_is_refused(tmp_path):
    def opened(folder: Path, environment: dict) -> None:
        with Store(folder, environment) as store:
            store.save()

    opened(tmp_path, {"device": "cuda", "gpu": "H", "threads": 2})
    with pytest.raises(InputError, match=r"another environment: threads 2 \(now 4\); choose another folder"):
        opened(tmp_path, {"device": "cuda", "gpu": "H", "threads": 4})
    with pytest.raises(InputError, match=r"device cuda \(now cpu\), gpu H \(now None\)"):
        opened(tmp_path, {"device": "cpu", "threads": 2})
    for content in ("{", "[]", '{"environment": null, "cells": {}, "probes": {}, "races": {}}'):
        (tmp_path / "cells.json").write_text(content)
        with pytest.raises(InputError, match=r"cells\.json does not hold measured cells"):
            opened(tmp_path, {})
    for folder in (tmp_path / "cells.json", tmp_path / "cells.json" / "below"):
        with pytest.raises(InputError, match="is no folder that can be written"):
            opened(folder, {})


def test_one_sweep_in_a_folder_at_a_time(tmp_path):
    """Catches two that overwrite each other's figures."""
    with Store(tmp_path, {}), pytest.raises(InputError, match="another sweep is measuring into"), Store(tmp_path, {}):
        pass
    with Store(tmp_path, {}):
        pass


class Breaks(nn.Module):
    """Fails with images of 64 pixels, in the fifth step with those of 96, and has no memory for more than two of 32."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 1000)

    def forward(self, x):
        if x.shape[-1] == 64:
            raise ValueError("64 pixels are too many")
        if x.shape[-1] == 96:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls > 4:
                raise ValueError("not five times")
        if x.shape[0] > 2:
            torch.empty(1 << 50)
        return self.head(x.mean((2, 3)))


def test_cells_that_fail_are_rows_and_the_rest_goes_on(tmp_path, monkeypatch):
    """Catches one bad cell that ends the sweep, or the race; in this process, where the model can be our own."""
    monkeypatch.setattr(workers, "create", lambda name, *_: Breaks() if name == "breaks" else create(name, *_))
    monkeypatch.setattr(sweep, "stream", _in_this_process)
    plan = Plan([Candidate("breaks"), Candidate(NANO)], [32, 64, 96], ["infer"], ["float32"], 2, Setting())
    store, seen = Store(tmp_path, {}), []
    assert sweep.run(plan, store, Limits(3, 20.0), lambda key, row: seen.append(key), Candidate(NANO))
    assert seen == plan.keys()
    for size, reason in ((64, "ValueError: 64 pixels are too many"), (96, "ValueError: not five times")):
        broken, fine = (
            store.cells[plan.key(Candidate(n), Cell(size, 2, "float32", "infer"))] for n in ("breaks", NANO)
        )
        status = "failed" if size == 64 else "alone"  # what it did before the race holds
        assert (broken["status"], broken["reason"]) == (status, ("" if size == 64 else "beside the others: ") + reason)
        assert (fine["status"], len(fine["seconds"])) == ("ok", 3)
        assert len(broken["seconds"]) == 1 if size == 96 else "seconds" not in broken
    assert sweep.run(plan, store, Limits(3, 20.0), lambda key, row: seen.append(key), Candidate(NANO))
    assert len(seen) == 6  # nothing is tried again by itself
    rows = derive(store.cells, store.races, Candidate(NANO))
    text = report.render(rows, environment(), Candidate(NANO))
    assert "failed: ValueError: 64 pixels are too many" in text
    store.forget_failures(plan.keys()[2:4])
    assert len(store.cells) == 5


def test_a_batch_that_does_not_fit_is_halved(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "create", lambda name, *_: Breaks() if name == "breaks" else create(name, *_))
    monkeypatch.setattr(sweep, "stream", _in_this_process)
    plan = Plan([Candidate("breaks"), Candidate(NANO)], [32], ["infer"], ["float32"], 8, Setting())
    store = Store(tmp_path, {})
    assert sweep.run(plan, store, Limits(3, 20.0), lambda *_: None, Candidate(NANO))
    halved, whole = store.cells.values()
    assert (halved["status"], halved["batch"], halved["requested"], whole["batch"]) == ("ok", 2, 8, 8)


def _in_this_process(function, arguments, seconds, limit):
    messages = []
    try:
        function(messages.append, **arguments)
    except Exception as error:
        raise Ended(f"{type(error).__name__}: {error}", "allocate" in str(error)) from error
    yield from messages


def test_a_race_that_dies_takes_no_figures_along(tmp_path, monkeypatch):
    """Models that each have memory enough alone, and not beside each other."""

    def killed(function, arguments, seconds, limit):
        if function is workers.race:
            raise Ended("killed by the system", True)
        yield from _in_this_process(function, arguments, seconds, limit)

    monkeypatch.setattr(sweep, "stream", killed)
    plan = Plan([Candidate(NANO), Candidate(TINY)], [32], ["infer"], ["float32"], 2, Setting())
    store, measured = Store(tmp_path, {}), []
    for _ in range(2):
        assert sweep.run(plan, store, Limits(3, 20.0), lambda key, row: measured.append(key), Candidate(TINY))
    assert len(measured) == 2
    for row in store.cells.values():
        assert (row["status"], len(row["seconds"])) == ("alone", 1)
        assert row["reason"] == "beside the others: killed by the system"
    assert not store.races


def test_slow_cells_are_timed_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "stream", _in_this_process)
    plan = Plan([Candidate(NANO)], [64], ["infer"], ["float32"], 1, Setting())
    store = Store(tmp_path, {})
    sweep.run(plan, store, Limits(3, 1e-6), lambda *_: None, Candidate(NANO))
    (row,) = store.cells.values()
    assert row["status"] == "alone"
    assert len(row["seconds"]) == 1
    (flat,) = derive(store.cells, store.races, Candidate(NANO))
    assert (flat["spread"], flat["rounds"], flat["paired"], flat["ratio"]) == (None, 1, False, 1.0)
    assert "*" in report.render([flat], environment(), Candidate(NANO))
    sweep.run(plan, store, Limits(3, 20.0), lambda *_: None, Candidate(NANO))  # now there is time for it
    (row,) = store.cells.values()
    assert (row["status"], len(row["seconds"])) == ("ok", 3)


@pytest.mark.slow
def test_compiled_models(tmp_path):
    result = measure(Request([NANO, TINY], [32], sdpa=["default", "math"], compiled=True, **QUICK), tmp_path)
    rows = [(row["status"], row["series"], row["rounds"]) for row in result["rows"]]
    assert rows == 3 * [("ok", "batch 4, compiled", 3)]


def test_math_alone(tmp_path):
    """Catches ratios to a fused baseline that nobody measured, and a model without softmax left out."""
    result = measure(Request([NANO, TINY], [32], sdpa=["math"], **QUICK), tmp_path)
    assert result["baseline"] == Candidate(TINY, "math")._asdict()
    assert [(row["model"], row["sdpa"]) for row in result["rows"]] == [(NANO, "default"), (TINY, "math")]
    assert result["rows"][0]["paired"]
    assert result["rows"][1]["ratio"] == 1


def test_a_budget_of_the_whole_run(tmp_path):
    result = measure(Request([NANO], [32], minutes=0.0, **QUICK), tmp_path)
    assert not result["complete"]
    assert result["rows"] == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([NANO], [32], baseline=TINY), f"--baseline: '{TINY}' is not one of --models {NANO}"),
        (Request([NANO], [32], batch=0), "--batch: got '0'"),
        (Request([NANO], [32], batch="many"), "--batch: got 'many'"),
        (Request([NANO], [64, 8]), r"--resolutions: got \[64, 8\]"),
        (Request([NANO], [32], rounds=0), "--rounds: got 0"),
        (Request([NANO], [32], cell_seconds=float("nan")), "--cell-seconds: got nan"),
        (Request([NANO], [32], minutes=-1.0), "--minutes: got -1"),
        (Request([NANO], [32], threads=0), "--threads: got 0"),
        (
            Request([NANO], [32], sdpa=["fast"]),
            "--sdpa: got fast, expected out of default, cudnn, flash, efficient, math",
        ),
        (Request([NANO], [32], device="mps"), "--device: got 'mps'"),
        (Request([], [32]), "--models: got none"),
        (Request([NANO], [32], dtypes=["float64"]), "--dtype: got float64"),
    ],
    ids=str,
)
def test_bad_requests(request_, message, tmp_path):
    with pytest.raises(InputError, match=message):
        measure(request_, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_wrong_name(tmp_path):
    done = run_tool("throughput.py", "--models", NANO, "deit_tinny_patch16_224", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "unknown model 'deit_tinny_patch16_224' (did you mean deit_tiny_patch16_224" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    "how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL], ids=["SIGINT", "SIGKILL"]
)
def test_an_interrupted_sweep_goes_on(how, tmp_path):
    """Catches figures lost, figures taken twice, and processes left behind."""
    command = [*TOOL, "--json", "--models", NANO, TINY, "--resolutions", "32", "64", "--rounds", "3"]
    command += ["--batch", "4", "--threads", "1", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    file, patience = tmp_path / "cells.json", time.monotonic() + 120
    while not (file.exists() and json.loads(file.read_text())["cells"]):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < patience
        time.sleep(0.02)
    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
    assert process.wait(60) == (130 if how == signal.SIGINT else -signal.SIGKILL)
    process.stderr.close()
    process.stdout.close()
    first = json.loads(file.read_text())["cells"]
    assert 0 < len(first) < 4
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["complete"]
    assert len(result["rows"]) == 4
    last = json.loads(file.read_text())["cells"]
    assert {key: last[key] for key in first} == first
    for _ in range(100):
        if not _of_session(process.pid):
            break
        time.sleep(0.1)
    assert not _of_session(process.pid)


def _of_session(session: int) -> list[str]:
    """Command lines of the processes that are left of a session."""
    done = subprocess.run(["ps", "-o", "args=", "--sid", str(session)], capture_output=True, text=True)
    return done.stdout.splitlines()


def test_a_repeated_sweep_is_compared(tmp_path):
    """By hand: one cell 10 percent slower, one twice as fast, one that the other sweep does not have."""
    cell = dict(sdpa="default", mode="infer", dtype="float32", series="batch 1", size=64, batch=1, status="ok")
    cells = {name: dict(cell, model=name, seconds=[1.0, 2.0, 3.0]) for name in "ab"}
    (tmp_path / "cells.json").write_text(json.dumps({"cells": cells}))
    rows = [
        dict(cell, model=model, milliseconds=ms, spread=0.1) for model, ms in (("a", 2200.0), ("b", 1000.0), ("c", 1.0))
    ]
    found = agreement(rows, tmp_path)
    assert (found["cells"], found["within"], found["ratio"]) == (2, 1, 0.8)
    assert [(x["model"], x["milliseconds_before"]) for x in found["beyond"]] == [("b", 2000.0)]
    text = describe(found, "before")
    assert "1 of 2 medians within 15%, in the median 0.800 times as long" in text
    assert "b infer float32 64: 2000.0 ms (spread 100%) before, 1000.0 ms (10%) now" in text
    with pytest.raises(InputError, match="--against: .* does not hold measured cells"):
        agreement(rows, tmp_path / "none")
