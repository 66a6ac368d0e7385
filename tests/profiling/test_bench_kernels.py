"""The operator's benchmark: the gate before the times, and its tolerances, which are those of the tests."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import tolerances
import torch

from metala_vision.errors import InputError
from metala_vision.kernels import ops
from metala_vision.profiling import Spread
from metala_vision.profiling.speed import timing

SOFTMAX = "softmax (default)"
TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench_kernels.py"


@pytest.fixture
def tool(monkeypatch):
    """The tool as a module, and a way to run it with a command line."""
    spec = importlib.util.spec_from_file_location("bench_kernels", TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(TOOL.parent)  # as when it is run
    spec.loader.exec_module(module)

    def run(*arguments: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["bench_kernels.py", "--shapes", "2x3x4", "--rounds", "2", *arguments])
        return module.main(module.parse_args())

    module.run = run
    return module


def test_tolerances_are_the_table(tool):
    """Catches a gate that lets through what the tests would not."""
    for name, tolerance in tool.TOLERANCE.items():
        assert tolerance == tolerances.for_dtype(getattr(torch, name))
    assert tool.BFLOAT16_GATE_GRADIENT == tolerances.BFLOAT16_GATE_GRADIENT


def test_reports_each_backend_beside_softmax(tool, monkeypatch, capsys):
    """Catches a candidate left out, a ratio upside down or of other rounds, and a result that is no JSON."""

    def runs_all(candidates, rounds, warmup, device):
        assert device == "cpu"
        for run in candidates.values():
            run()
        yield {name: Spread((1.0, 3.0) if name == SOFTMAX else (4.0, 24.0)) for name in candidates}

    monkeypatch.setattr(timing, "interleaved", runs_all)
    result = json.loads(json.dumps(tool.run("--key", "8", "--value", "8")))
    assert [row["pass"] for row in result["results"]] == ["forward", "forward and backward"]
    for row in result["results"]:
        rows = row["candidates"]
        assert {"chunked", SOFTMAX} <= set(rows)
        assert {name: x["median_ms"] for name, x in rows.items()} == {
            name: 2000.0 if name == SOFTMAX else 14000.0 for name in rows
        }
        assert rows["chunked"]["speedup_over_softmax"] == pytest.approx((1 / 4 + 3 / 24) / 2)
    assert "forward and backward" in capsys.readouterr().out


def test_softmax_kernels_by_name(tool):
    """Catches a kernel that is left out, and ratios to another one than the first."""
    for row in tool.run("--key", "8", "--value", "8", "--backends", "chunked", "--sdpa", "math", "default")["results"]:
        assert set(row["candidates"]) == {"chunked", "softmax (math)", SOFTMAX}
        assert row["candidates"]["softmax (math)"]["speedup_over_softmax"] == 1


def test_a_softmax_kernel_that_there_is_not(tool, capsys):
    """Catches a benchmark that ends with the first kernel that this device does not have."""
    for row in tool.run("--key", "8", "--value", "8", "--sdpa", "default", "cudnn")["results"]:
        assert set(row["missing"]) == {"softmax (cudnn)"}
        assert "softmax (cudnn)" not in row["candidates"]
    assert "softmax (cudnn)        does not run here: RuntimeError" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--sdpa: softmax \(cudnn\) does not run here, and ratios are to it"):
        tool.run("--key", "8", "--value", "8", "--sdpa", "cudnn", "default")


def test_times_what_it_reports(tool):
    """Catches times of other candidates than the names say: PyTorch's scan takes many times as long as softmax here."""
    for row in tool.run("--key", "8", "--value", "8", "--backends", "chunked", "--rounds", "5")["results"]:
        times = {name: x["median_ms"] for name, x in row["candidates"].items()}
        assert times["chunked"] > times[SOFTMAX]


def test_a_wrong_backend_is_not_timed(tool, monkeypatch, capsys):
    """Catches a figure for a kernel that computes something else."""
    right = ops.COMPOSED["chunked"]
    monkeypatch.setitem(ops.COMPOSED, "chunked", lambda *arguments: 1.001 * right(*arguments))
    with pytest.raises(SystemExit) as stopped:
        tool.run("--backends", "chunked")
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert "backend 'chunked' is beyond the tolerances: out 1.0e-03" in said.err
    assert "median" not in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shapes", "14x14"), "--shapes: got '14x14', expected batch x rows x columns"),
        (("--backends", "fpga"), "--backends: got fpga, expected out of"),
        (("--scan", "row", "row"), "--scan: got row row, expected out of"),
        (("--device", "tpu"), "--device: got 'tpu', expected auto, cpu, cuda or cuda:1"),
        (("--sdpa", "fast"), "--sdpa: got fast, expected out of default, cudnn, flash, efficient, math"),
        (("--rounds", "1"), "--rounds: got 1, expected at least 2"),
    ],
)
def test_bad_input(tool, arguments, message):
    with pytest.raises(InputError, match=f"^{message}"):
        tool.run(*arguments)
