"""The report on a GPU: its conductor with parts that fail in every way, and a rehearsal of the real ones on the CPU."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from metala_vision.errors import InputError
from metala_vision.profiling.environment import environment
from metala_vision.profiling.gpu_report import Options, conductor, report
from metala_vision.profiling.gpu_report.ceilings import assembler_version, assemblers
from metala_vision.profiling.gpu_report.operators import floor_bytes
from metala_vision.profiling.gpu_report.parts import PARTS, Part
from metala_vision.profiling.gpu_report.summary import LINES, render
from metala_vision.profiling.zoo import build

ROOT = Path(__file__).resolve().parents[2]
FAKE = """
import os, signal, time
from pathlib import Path
from metala_vision.profiling.gpu_report.parts import Cell

def good(job):
    return [Cell("one", lambda: {"value": 1.5}), Cell("two", lambda: {"value": float("inf")})]

def mixed(job):
    def fails():
        raise ValueError("no such kernel")
    def no_memory():
        raise MemoryError("CUDA out of memory")
    def dies():
        os.kill(os.getpid(), signal.SIGSEGV)
    return [Cell("fails", fails), Cell("no memory", no_memory), Cell("dies", dies), Cell("after", lambda: {"value": 2})]

def hangs(job):
    def begun():
        time.sleep(600)
    return [Cell("quick", lambda: {}), Cell("stuck", begun), Cell("never", lambda: {})]

def counted(job):
    def count():
        path = Path(os.environ["COUNTER"])
        path.write_text(path.read_text() + "x")
        if len(path.read_text()) < 2:
            raise OSError("not yet")
        return {}
    return [Cell("once", lambda: Path(os.environ["ONCE"]).touch(exist_ok=False) or {}), Cell("second time", count)]

def broken(job):
    raise ImportError("what a bare machine lacks")
"""


def fake(name: str, seconds: float = 60.0) -> Part:
    return Part(name, f"The {name} part", seconds, f"fake_parts:{name}")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A report of fake parts, as a rehearsal, and the lines that it shows."""
    (tmp_path / "fake_parts.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def conduct(
        *parts: Part, minutes: float = 1.0, chosen: tuple[str, ...] = (), again: bool = False
    ) -> tuple[dict, list[str]]:
        lines: list[str] = []
        options = Options(minutes, tmp_path / "out", chosen, rehearse=True, again=again)
        return report(options, lines.append, known=parts), lines

    return conduct


@pytest.mark.long
def test_one_cell_fails_and_the_rest_goes_on(run, tmp_path):
    """Catches a part that ends with its first error, a death that takes the later cells along, and lost reasons."""
    content, _ = run(fake("mixed"), fake("broken"), fake("good"))
    rows = {cell["cell"]: cell for cell in content["parts"]["mixed"]["cells"]}
    assert {key: cell["status"] for key, cell in rows.items()} == {
        "fails": "failed",
        "no memory": "out of memory",
        "dies": "died",
        "after": "ok",
    }
    assert rows["fails"]["reason"] == "ValueError: no such kernel"
    assert "signal 11" in rows["dies"]["reason"]
    assert content["parts"]["broken"]["status"] == "failed"
    assert "what a bare machine lacks" in content["parts"]["broken"]["reason"]
    assert content["parts"]["good"]["status"] == "ok"
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["parts"]["good"]["cells"][1]["value"] is None, "infinity is no JSON"
    assert saved["parts"]["mixed"]["cells"] == content["parts"]["mixed"]["cells"]
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "=== mixed" in log
    assert "ValueError: no such kernel" in log
    assert (tmp_path / "out" / "report.txt").read_text().strip() == content["table"]


@pytest.mark.long
def test_a_part_that_hangs_is_ended(run, monkeypatch):
    """Catches a report that waits for a kernel that never ends, and time that is not left for the next part."""
    monkeypatch.setattr(conductor, "GRACE", 1.0)
    start = time.monotonic()
    content, _ = run(fake("hangs", 1.0), fake("good", 1.0), minutes=0.6)
    assert time.monotonic() - start < 60
    statuses = {cell["cell"]: cell["status"] for cell in content["parts"]["hangs"]["cells"]}
    assert statuses == {"quick": "ok", "stuck": "too slow", "never": "not reached"}
    assert content["parts"]["good"]["status"] == "ok"


@pytest.mark.long
def test_an_end_in_the_midst_keeps_what_there_is(run, tmp_path, monkeypatch):
    """Catches rows of a part that are lost with the report, and a worker that goes on without it."""
    former = conductor._run

    def interrupted(command, environment, log, seconds):
        former(command, environment, log, 20.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(conductor, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(fake("good"))
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [cell["status"] for cell in saved["parts"]["good"]["cells"]] == ["ok", "ok"]

    def at_once(command, environment, log, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(conductor, "_run", at_once)
    with pytest.raises(KeyboardInterrupt):
        run(fake("good"), chosen=("good",))
    again = json.loads((tmp_path / "out" / "report.json").read_text())["parts"]["good"]
    assert [cell["status"] for cell in again["cells"]] == ["ok", "ok"], "what was to be measured anew is still there"


@pytest.mark.long
def test_a_worker_ends_with_its_parent(tmp_path, monkeypatch):
    """Catches a cell that hangs and holds the GPU after its report was killed."""
    (tmp_path / "fake_parts.py").write_text(FAKE)
    rows = tmp_path / "rows"
    worker = [
        sys.executable,
        "-m",
        "metala_vision.profiling.gpu_report.worker",
        "fake_parts:hangs",
        "--rows",
        str(rows),
    ]
    worker += ["--scratch", str(tmp_path), "--seconds", "600", "--device", "cpu"]
    code = (
        f"import subprocess, time; p = subprocess.Popen({worker!r}, start_new_session=True); print(p.pid, flush=True)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    wait = "import time; time.sleep(600)"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"{code}; {wait}"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    end = time.monotonic() + 60
    while not (rows.exists() and "stuck" in rows.read_text()) and time.monotonic() < end:
        time.sleep(0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{child}/stat").read_text().split()[2]
        except FileNotFoundError:
            return
        if state == "Z":  # ended, and nobody has asked
            return
        time.sleep(0.2)
    raise AssertionError("the worker goes on without its parent")


@pytest.mark.long
def test_the_same_command_goes_on(run, tmp_path, monkeypatch):
    """Catches figures measured twice, and failures that are never tried again."""
    (tmp_path / "counter").write_text("")
    monkeypatch.setenv("COUNTER", str(tmp_path / "counter"))
    monkeypatch.setenv("ONCE", str(tmp_path / "once"))
    first, _ = run(fake("counted"))
    assert [cell["status"] for cell in first["parts"]["counted"]["cells"]] == ["ok", "failed"]
    second, _ = run(fake("counted"))
    assert [cell["status"] for cell in second["parts"]["counted"]["cells"]] == ["ok", "ok"]
    assert second["parts"]["counted"]["status"] == "ok"
    (tmp_path / "once").unlink()
    again, _ = run(fake("counted"), chosen=("counted",))
    assert (tmp_path / "once").exists(), "a part that is named is run anew"
    assert again["parts"]["counted"]["status"] == "ok"


@pytest.mark.long
def test_a_report_of_something_else_is_not_written_over(run, tmp_path):
    """Catches two cards' figures in one table."""
    path = tmp_path / "out" / "report.json"
    path.parent.mkdir()
    former = {"environment": environment("cpu") | {"torch": "1.0"}, "parts": {}}
    path.write_text(json.dumps(former))
    with pytest.raises(InputError, match=r"holds a report of something else: torch 1\.0 \(now "):
        run(fake("good"))
    content, _ = run(fake("good"), again=True)
    assert content["environment"]["torch"] == torch.__version__
    path.write_text("{}")
    with pytest.raises(InputError, match="is no report"):
        run(fake("good"))


def test_bad_options(tmp_path):
    """Catches a wrong name that is noticed after nine minutes."""
    with pytest.raises(InputError, match="--parts: got speed, expected out of environment, correctness, operators"):
        report(Options(out=tmp_path, parts=("speed",), rehearse=True))
    with pytest.raises(InputError, match="--minutes: got 0"):
        report(Options(0, tmp_path, rehearse=True))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA GPU here; --rehearse"):
            report(Options(out=tmp_path))
    assert not list(tmp_path.iterdir())


def test_floor_is_each_tensor_once():
    """By hand for bfloat16, K 32 and V 64: q, g, v and the result; backward those, its gradient and three gradients."""
    forward = floor_bytes(torch.bfloat16, "forward")
    assert forward == {"operator": 2 * (32 + 32 + 64 + 64), "fused mixer": 512}
    both = floor_bytes(torch.bfloat16, "forward and backward")
    assert both["operator"] == forward["operator"] + 2 * (128 + 64 + 128)
    assert both["fused mixer"] == 512 + 2 * (192 + 64 + 192)


def test_the_first_assembler_is_the_one_that_triton_takes():
    """Catches a comparison of one assembler with itself, and another one named than the kernels are built by."""
    pytest.importorskip("triton", reason="Triton is not installed: it comes with torch on Linux")
    found = {capability: assemblers(capability) for capability in ((8, 0), (9, 0), (10, 0))}
    assert all(len(set(paths)) == len(paths) == 2 for paths in found.values())
    assert [found[capability][0].name for capability in ((8, 0), (10, 0))] == ["ptxas", "ptxas-blackwell"]
    versions = {path.name: assembler_version(path).split(".") for path in found[9, 0]}
    assert int(versions["ptxas"][0]) >= 12
    assert versions["ptxas-blackwell"] != versions["ptxas"]


def test_an_assembler_without_a_version(tmp_path):
    """Catches a part of the report that fails because a program says less than another release of it."""
    program = tmp_path / "ptxas"
    program.write_text("#!/bin/sh\necho ptxas\n")
    program.chmod(0o755)
    assert assembler_version(program) is None


def full_report() -> dict:
    """Every cell that a GPU would give, with figures of plausible width, and one failure in each part."""
    from metala_vision.profiling.gpu_report import models, operators
    from metala_vision.profiling.gpu_report.parts import Job

    job = Job("cuda", False, 0.0, Path(), {})
    failed = {"cell": "some cell", "status": "failed", "reason": "RuntimeError: " + "x" * 200}
    candidate = {"ns_per_head_token": 123.456, "milliseconds": 1.0, "of_floor": 0.5}
    names = ("operator", "fused mixer", *operators.SOFTMAX, "fla chunk_gla")
    cells = [
        {"cell": cell.key, "status": "ok", "candidates": dict.fromkeys(names, candidate)}
        for cell in operators.cells(job)
    ]
    parts = {"operators": cells}
    parts["models"] = [
        {
            "cell": cell.key,
            "status": "ok",
            "mode": cell.key.split()[2],
            "way": cell.key.split()[3],
            "models": {"ours": {"images_per_second": 12345.6}, "deit": {}},
            "ratio": 12.34,
        }
        for cell in models.cells(job)
    ]
    training = {"status": "ok", "first": 2.7, "last": 0.1, "steps": 200, "step_ms": 12.3}
    parts["training"] = [{"cell": f"run {i}", **training} for i in range(5)]
    return {
        "parts": {
            part.name: {
                "title": part.title,
                "status": "incomplete",
                "seconds": 1.0,
                "cells": [*parts.get(part.name, []), failed],
            }
            for part in PARTS
        }
    }


def test_the_table_fits(run):
    """Catches a table whose first lines a terminal, or the end of a log, no longer shows."""
    table = render(full_report())
    assert len(table.splitlines()) <= LINES == 60
    assert max(map(len, table.splitlines())) <= 150
    assert "… and" not in table, "a whole report should fit"
    many = full_report()
    many["parts"]["training"]["cells"] *= 30
    assert len(render(many).splitlines()) == 60
    assert "report.json" in render(many).splitlines()[-1]


def test_the_zoo_shows_a_report(tmp_path):
    """Catches figures that nobody sees, and those of a rehearsal taken for a card's."""
    for name in ("results", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    content = full_report() | {"environment": {"processor": "some"}, "rehearsal": True}
    card = {"cell": "versions", "status": "ok", "card": "Card X", "torch": "2.11", "triton": "3.6", "driver": "580"}
    content["parts"]["environment"]["cells"].append(card)
    path = tmp_path / "results" / "gpu_card_x" / "report.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    assert "Card X" not in build(tmp_path)
    path.write_text(json.dumps(content | {"rehearsal": False}))
    page = build(tmp_path)
    assert "### Card X\n\nPyTorch 2.11, Triton 3.6, driver 580." in page
    assert "| `metala_vit_small` | 2048x1 | 12346 (12.34) |" in page
    assert "| 8x64x64 bfloat16 forward and backward | 123.46 (50%) |" in page
    assert "nobody has run it" not in page


@pytest.mark.long
def test_rehearsal_of_one_part(tmp_path):
    """Catches a tool whose own command does not run, or a kernel that the benchmark of operators cannot call."""
    pytest.importorskip("triton", reason="Triton is not installed: it comes with torch on Linux")
    command = [sys.executable, str(ROOT / "tools" / "gpu_report.py"), "--rehearse", "--out", str(tmp_path), "--json"]
    command += ["--minutes", "9", "--parts", "operators"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr + (tmp_path / "log.txt").read_text()
    content = json.loads((tmp_path / "report.json").read_text())
    (operators,) = {tuple(cell["candidates"]) for cell in content["parts"]["operators"]["cells"]}
    assert {"operator", "fused mixer", "softmax (flash)"} <= set(operators)


@pytest.mark.slow
def test_rehearsal(tmp_path):
    """Catches a part whose code does not even run: every one of them, on the CPU, by the tool's own command."""
    pytest.importorskip("triton", reason="Triton is not installed: it comes with torch on Linux")
    command = [sys.executable, str(ROOT / "tools" / "gpu_report.py"), "--rehearse", "--out", str(tmp_path), "--json"]
    done = subprocess.run([*command, "--minutes", "9"], capture_output=True, text=True, timeout=290)
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, done.stderr + log
    result = json.loads(done.stdout)
    assert result["parts"] == dict.fromkeys([part.name for part in PARTS], "ok")
    assert result["cells"].keys() == {"ok"}
    content = json.loads((tmp_path / "report.json").read_text())
    first, second = content["parts"]["correctness"]["cells"]
    assert first["passed"] >= 2
    assert first["failed"] == first["skipped"] == first["not_run"] == 0
    assert second["compared"] == second["equal_bits"] >= 1
    (operators,) = {tuple(cell["candidates"]) for cell in content["parts"]["operators"]["cells"]}
    assert {"operator", "fused mixer", "softmax (flash)"} <= set(operators)
    assert all(cell["ratio"] > 0 for cell in content["parts"]["models"]["cells"])
    assert all(cell["last"] < cell["first"] for cell in content["parts"]["training"]["cells"])
    assert len(done.stderr.splitlines()) <= LINES + 20
