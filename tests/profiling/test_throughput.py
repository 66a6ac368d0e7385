"""Sweeps: what they measure, what survives an interruption, and what a cell that fails does to the others."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from metala_vision.errors import InputError
from metala_vision.profiling import sweep, sweep_report, workers
from metala_vision.profiling.environment import environment
from metala_vision.profiling.isolated import Ended, stream
from metala_vision.profiling.steps import Cell, create, has_fused_attention, make_step, tokens
from metala_vision.profiling.sweep import Limits, Plan, Store, automatic_batch
from metala_vision.profiling.throughput import Request, measure
from metala_vision.profiling.workers import Candidate, Setting

ROOT = Path(__file__).resolve().parents[2]
TOOL = [sys.executable, str(ROOT / "tools" / "throughput.py")]
NANO, TINY = "metala_vit_nano", "vit_tiny_patch16_224"
QUICK = dict(rounds=3, cell_seconds=20.0, threads=1)


# --- functions for processes of their own


def count_to(send, number: int) -> None:
    for value in range(number):
        send({"value": value})


def allocate(send, size: int) -> None:
    send({"elements": torch.zeros(size // 4).numel()})


def die(send, how: int) -> None:
    os.kill(os.getpid(), how)


def sleep(send, seconds: float) -> None:
    send({"asleep": os.getpid()})
    time.sleep(seconds)


def fail(send) -> None:
    raise KeyError("nothing here")


def test_a_process_of_its_own():
    assert [m["value"] for m in stream(count_to, {"number": 3}, 60, None)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("function", "arguments", "limit", "reason", "memory"),
    [
        (allocate, {"size": 4 << 30}, 2 << 30, "can't allocate memory", True),
        (die, {"how": signal.SIGKILL}, None, "killed by the system: out of memory, most likely", True),
        (die, {"how": signal.SIGSEGV}, None, "SIGSEGV", False),
        (fail, {}, None, "KeyError: 'nothing here'", False),
        (sleep, {"seconds": 600.0}, None, "nothing came back within 5 s", False),
    ],
    ids=["memory", "killed", "crashed", "raised", "stuck"],
)
def test_what_ends_a_process_is_told(function, arguments, limit, reason, memory):
    """Catches a sweep that dies, or waits for ever, with the cell that it measures."""
    with pytest.raises(Ended) as ended:
        list(stream(function, arguments, 5 if function is sleep else 60, limit))
    assert reason in ended.value.reason
    assert ended.value.memory == memory


def test_a_process_does_not_outlive_who_reads_it():
    messages = stream(sleep, {"seconds": 600.0}, 60, None)
    process = next(messages)["asleep"]
    messages.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


# --- steps


def test_softmax_models_are_told_by_what_they_call():
    """XCiT's only fused attention has a single query, ours none."""
    assert has_fused_attention(TINY, 64)
    assert not has_fused_attention(NANO, 64)
    assert not has_fused_attention("xcit_nano_12_p16_224", 64)


def test_tokens():
    assert tokens(create(NANO, 72), 72) == 25
    assert tokens(create(TINY, 64), 64) == 16
    assert tokens(create("resnet18", 64), 64) is None
    assert tokens(create("swin_tiny_patch4_window7_224", 224), 224) is None  # fewer with every stage


def test_math_is_the_same_function():
    """And the kernel is another one: the fused one keeps no map."""
    torch.manual_seed(0)
    model = create(TINY, 64).eval()
    seen = {}
    for sdpa in ("fused", "math"):
        handle = model.register_forward_hook(lambda *args: seen.update({sdpa: args[2]}))  # noqa: B023
        torch.manual_seed(1)
        with torch.profiler.profile() as profile:
            make_step(model, Cell(64, 2, "float32", "infer"), sdpa=sdpa)()
        handle.remove()
        names = {event.name for event in profile.events()}
        assert ("aten::_scaled_dot_product_attention_math" in names) == (sdpa == "math")
    torch.testing.assert_close(seen["fused"], seen["math"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_step_trains(dtype):
    model = create(NANO, 32).train()
    before = [p.detach().clone() for p in model.parameters()]
    make_step(model, Cell(32, 2, dtype, "train"))()
    assert all(p.grad is None for p in model.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


# --- sweeps


def test_automatic_batch():
    assert [automatic_batch(size, "cpu") for size in (64, 224, 384, 512, 2048)] == [64, 8, 2, 1, 1]
    assert [automatic_batch(size, "cuda") for size in (224, 448, 1024, 4096)] == [256, 64, 8, 1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("sweep")
    request = Request([NANO, TINY], [32, 64], modes=["infer", "train"], sdpa=["fused", "math"], **QUICK)
    return folder, measure(request, folder)


def test_rows(measured):
    """Catches a cell left out, rates that do not fit the times, memory of something else than the cell."""
    folder, result = measured
    assert result["complete"]
    assert result["baseline"] == TINY
    rows = {(row["model"], row["sdpa"], row["mode"], row["size"]): row for row in result["rows"]}
    assert set(rows) == {
        (model, sdpa, mode, size)
        for model, sdpa in ((NANO, "fused"), (TINY, "fused"), (TINY, "math"))
        for mode in ("infer", "train")
        for size in (32, 64)
    }
    for (model, sdpa, _, size), row in rows.items():
        assert row["status"] == "ok"
        assert row["rounds"] == 3
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["milliseconds"], rel=1e-3)
        assert row["tokens_per_second"] == pytest.approx(row["images_per_second"] * (size // 16) ** 2, rel=1e-3)
        assert row["paired"]
        assert (row["ratio"] == 1) == (model == TINY and sdpa == "fused")
        assert row["peak_memory_mb"] > row["baseline_memory_mb"] > 50
        assert row["parameters"] == sum(p.numel() for p in timm.create_model(model, img_size=size).parameters())
    train, infer = (rows[TINY, "fused", mode, 64]["peak_memory_mb"] for mode in ("train", "infer"))
    assert train > infer + 3 * 5.7 * 4  # gradients and two moments


def test_files(measured):
    folder, result = measured
    assert json.loads((folder / "throughput.json").read_text())["rows"] == result["rows"]
    assert len((folder / "throughput.csv").read_text().splitlines()) == 1 + len(result["rows"])
    for mode in ("infer", "train"):
        assert (folder / f"throughput_{mode}_float32.png").read_bytes().startswith(b"\x89PNG")


def test_a_measured_cell_is_not_measured_again(measured, monkeypatch):
    folder, result = measured
    ran = []
    monkeypatch.setattr(sweep, "stream", lambda function, *args: ran.append(function) or iter(()))
    request = Request([NANO, TINY], [32, 64], modes=["infer", "train"], sdpa=["fused", "math"], **QUICK)
    again = measure(request, folder)
    assert not ran
    assert again["rows"] == result["rows"]


def test_a_new_model_runs_beside_the_baseline(measured):
    """Its ratio is of the same rounds, and the baseline's own row stays what it was."""
    folder, result = measured
    before = json.loads((folder / "cells.json").read_text())["cells"]
    more = measure(Request(["resnet18", TINY], [32], **QUICK), folder)
    resnet, tiny = more["rows"]
    assert (resnet["model"], resnet["status"], resnet["tokens_per_second"]) == ("resnet18", "ok", None)
    after = json.loads((folder / "cells.json").read_text())["cells"]
    assert {key: after[key] for key in before} == before


def test_another_environment_is_refused(tmp_path):
    Store(tmp_path, {"processor": "A", "threads": 2}).save()
    with pytest.raises(InputError, match=r"another environment: threads 2 \(now 4\); choose another folder"):
        Store(tmp_path, {"processor": "A", "threads": 4})
    (tmp_path / "cells.json").write_text("{")
    with pytest.raises(InputError, match=r"cells\.json does not hold measured cells"):
        Store(tmp_path, {})


class Breaks(nn.Module):
    """Fails with images of 64 pixels, and has too little memory for more than two of 32."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 1000)

    def forward(self, x):
        if x.shape[-1] == 64:
            raise ValueError("64 pixels are too many")
        if x.shape[0] > 2:
            torch.empty(1 << 50)
        return self.head(x.mean((2, 3)))


def test_cells_that_fail_are_rows_and_the_rest_goes_on(tmp_path, monkeypatch):
    """Catches one bad cell that ends the sweep, and a batch that is not halved; here in this process, for the model."""
    monkeypatch.setattr(workers, "create", lambda name, *_: Breaks() if name == "breaks" else create(name, *_))
    monkeypatch.setattr(sweep, "stream", _in_this_process)
    plan = Plan([Candidate("breaks"), Candidate(NANO)], [32, 64], ["infer"], ["float32"], 8, Setting())
    store, seen = Store(tmp_path, {}), []
    assert sweep.run(plan, store, Limits(3, 20.0), lambda key, row: seen.append(key), Candidate(NANO))
    assert seen == plan.keys()
    broken, fine = (
        store.cells[plan.key(Candidate(name), Cell(64, 8, "float32", "infer"))] for name in ("breaks", NANO)
    )
    assert (broken["status"], broken["reason"]) == ("failed", "ValueError: 64 pixels are too many")
    assert fine["status"] == "ok"
    halved = store.cells[plan.key(Candidate("breaks"), Cell(32, 8, "float32", "infer"))]
    assert (halved["status"], halved["batch"], halved["requested"]) == ("ok", 2, 8)
    rows = sweep_report.derive(list(store.cells.values()), NANO)
    text = sweep_report.render(rows, environment(), NANO)
    assert "failed: ValueError: 64 pixels are too many" in text
    store.forget_failures()
    assert len(store.cells) == 3


def _in_this_process(function, arguments, seconds, limit):
    messages = []
    try:
        function(messages.append, **arguments)
    except Exception as error:
        raise Ended(f"{type(error).__name__}: {error}", "allocate" in str(error)) from error
    yield from messages


def test_slow_cells_are_timed_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "stream", _in_this_process)
    plan = Plan([Candidate(NANO)], [64], ["infer"], ["float32"], 1, Setting())
    store = Store(tmp_path, {})
    sweep.run(plan, store, Limits(3, 1e-6), lambda *_: None, Candidate(NANO))
    (row,) = store.cells.values()
    assert row["status"] == "alone"
    assert len(row["seconds"]) == 1
    (flat,) = sweep_report.derive([row], NANO)
    assert (flat["spread"], flat["rounds"], flat["paired"], flat["ratio"]) == (None, 1, False, 1.0)
    assert "*" in sweep_report.render([flat], environment(), NANO)


def test_a_budget_of_the_whole_run(tmp_path):
    result = measure(Request([NANO], [32], minutes=0.0, **QUICK), tmp_path)
    assert not result["complete"]
    assert result["rows"] == []


def test_derived_figures():
    """By hand: batch 2 in 0.5, 0.4 and 0.6 s; the baseline's batch 4 in 2, 2 and 1.2 s of the same rounds."""
    common = dict(mode="infer", dtype="float32", compiled=False, size=64, status="ok", race="r", tokens=16)
    mine = dict(common, model="a", sdpa="fused", batch=2, seconds=[0.5, 0.4, 0.6], peak_memory=3e6, baseline_memory=1e6)
    base = dict(common, model="b", sdpa="fused", batch=4, seconds=[2.0, 2.0, 1.2], peak_memory=3e6, baseline_memory=1e6)
    row, _ = sweep_report.derive([mine, base], "b")
    assert row["images_per_second"] == 4
    assert row["tokens_per_second"] == 64
    assert row["milliseconds"] == 500
    assert row["peak_memory_mb"] == 3
    assert row["ratio"] == 2.0  # rounds of 4, 5 and 2 times the time, for twice the images
    assert row["paired"]
    row, _ = sweep_report.derive([mine, base | {"race": "another"}], "b")
    assert not row["paired"]
    assert row["ratio"] == 2.0


def test_exponents():
    rows = [
        dict(model="a", sdpa="fused", mode="infer", dtype="float32", compiled=False, size=s, status="ok")
        | {"images_per_second": 1 / (s / 1024) ** 3}
        for s in (512, 1024, 2048, 4096)
    ]
    (fit,) = sweep_report.exponents(rows)
    assert fit["exponent"] == 1.5
    assert fit["sizes"] == [1024, 2048, 4096]


# --- the command line


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([NANO], [32], baseline=TINY), f"--baseline: '{TINY}' is not one of --models {NANO}"),
        (Request([NANO], [32], batch=0), "--batch: got '0'"),
        (Request([NANO], [32], batch="many"), "--batch: got 'many'"),
        (Request([NANO], [64, 8]), r"--resolutions: got \[64, 8\]"),
        (Request([NANO], [32], rounds=0), "--rounds and --cell-seconds"),
        (Request([NANO], [32], dtypes=["float64"]), r"--dtype: got \['float64'\]"),
    ],
    ids=["baseline", "no batch", "batch", "resolution", "rounds", "dtype"],
)
def test_bad_requests(request_, message, tmp_path):
    with pytest.raises(InputError, match=message):
        measure(request_, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_wrong_name(tmp_path):
    command = [*TOOL, "--models", NANO, "deit_tinny_patch16_224", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown model 'deit_tinny_patch16_224' (did you mean deit_tiny_patch16_224" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_an_interrupted_sweep_goes_on(how, tmp_path):
    """Catches figures lost, figures taken twice, and processes left behind."""
    command = [*TOOL, "--json", "--models", NANO, TINY, "--resolutions", "32", "64", "96", "--rounds", "3"]
    command += ["--threads", "1", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    file = tmp_path / "cells.json"
    while not (file.exists() and json.loads(file.read_text())["cells"]):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
    assert process.wait(60) == (130 if how == signal.SIGINT else -signal.SIGKILL)
    process.stderr.close()
    process.stdout.close()
    first = json.loads(file.read_text())["cells"]
    assert 0 < len(first) < 6
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["complete"]
    assert len(result["rows"]) == 6
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
