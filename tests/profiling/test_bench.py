"""Benchmarks: what they count, what they print, and what they refuse."""

import json
from pathlib import Path

import pytest
import timm
import torch
from tool_process import run_tool

from metala_vision.errors import InputError
from metala_vision.kernels.linear import takes_onednn
from metala_vision.profiling import Spread, interleaved, matrix_products, replay
from metala_vision.profiling.speed import bench
from metala_vision.profiling.speed.bench import bench_models, parse_cell, render
from metala_vision.profiling.speed.steps import Cell, channels, compiled, create, make_step

ROOT = Path(__file__).resolve().parents[2]


def products_macs(dim: int, tokens: int, classes: int, depth: int, per_block: int) -> int:
    """Patch embedding, `per_block` dim^2 in every block, and the head."""
    return tokens * (3 * 16 * 16 * dim + depth * per_block * dim**2) + classes * dim


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["no_grad", "enable_grad"])
@pytest.mark.parametrize(("name", "dim", "depth", "per_block"), [("metala_vit_nano", 128, 6, 13)])
def test_products_of_a_forward_pass(name, dim, depth, per_block, mode, dtype):
    """Catches a projection that hides in an operator, or a depthwise convolution taken for a product."""
    model, x = timm.create_model(name, num_classes=7).eval(), torch.randn(2, 3, 48, 64)
    with getattr(torch, mode)(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = matrix_products(lambda: model(x))
    assert sum(p.macs for p in found) == 2 * products_macs(dim, 12, 7, depth, per_block)


def test_products_of_a_softmax_model_and_of_a_training_step():
    """Catches attention counted as a floor that a linear model has no part in, and a backward pass left out."""
    model = create("deit_tiny_patch16_224", 64).train()
    forward = 17 * 12 * 12 * 192**2 + 16 * 768 * 192 + 1000 * 192
    with torch.no_grad():
        assert sum(p.macs for p in matrix_products(lambda: model(torch.randn(1, 3, 64, 64)))) == forward
    step = matrix_products(make_step(model, Cell(64, 1, "float32", "train")))
    assert 2.7 * forward <= sum(p.macs for p in step) <= 3 * forward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_replay_runs_the_same_products(dtype):
    """Catches a floor of other shapes, layouts or dtypes than the model has, or by another library."""
    model, x = timm.create_model("metala_vit_nano", num_classes=7).eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = matrix_products(lambda: model(x))
    again = matrix_products(replay(found))
    assert again == found
    assert {p.left.dtype for p in found} == {dtype}
    assert sum(p.onednn for p in found) == (4 * 6 if takes_onednn(dtype) else 0)  # all products of all blocks


def test_rounds_are_interleaved():
    """Catches candidates timed one after the other: a slow minute would hit one of them alone."""
    calls = []
    *_, last = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert [len(spread.seconds) for spread in last.values()] == [3, 3]


def test_ratios_are_of_the_same_round():
    """Catches medians of different minutes of a machine, which here was twice as fast in the last rounds."""
    ours, theirs = Spread((4.0, 4.0, 2.0, 2.0, 2.0)), Spread((8.4, 8.0, 8.0, 4.0, 4.0))
    assert theirs.ratio_to(ours) == 2.0
    assert ours.ratio_to(theirs) == 0.5


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_rows(mode):
    """Catches a ratio upside down, and a row without its floor."""
    cells = [Cell(32, 2, "float32", mode), Cell(32, 1, "bfloat16", mode)]
    rows = bench_models(["metala_vit_nano", "metala_vit_tiny"], cells, rounds=1)
    assert [(r["model"], r["size"], r["batch"]) for r in rows] == [
        (name, cell.size, cell.batch) for cell in cells for name in ("metala_vit_nano", "metala_vit_tiny")
    ]
    for first, other in (rows[:2], rows[2:]):
        assert first["times_faster"] == 1.0
        assert other["times_faster"] == pytest.approx(first["milliseconds"] / other["milliseconds"])
        assert other["floor_share"] == pytest.approx(other["floor_milliseconds"] / other["milliseconds"])
        one_library = mode == "train" or other["dtype"] == "bfloat16" or not takes_onednn(torch.float32)
        assert (other["torch_floor_share"] == other["floor_share"]) == one_library
    assert "metala_vit_tiny" in render({"environment": {"threads": 2}, "rows": rows})


@pytest.mark.parametrize("text", ["0", "x8", "224x", "224x0", "-224", "2.5", "224x8x3", ""])
def test_bad_cell(text):
    """Catches a crash in the middle of a run for what the command line could have told."""
    with pytest.raises(InputError, match="^--cells: got "):
        parse_cell(text)


def test_cuda_graphs_reach_torch_compile(monkeypatch):
    """Catches a switch that changes nothing, and one that is not refused where there is nothing to record."""
    modes = []
    monkeypatch.setattr(bench, "compiled", lambda model, **options: modes.append(options) or model)
    monkeypatch.setattr(bench, "create", lambda name, size, device: create(name, size))
    monkeypatch.setattr(
        bench, "interleaved", lambda candidates, rounds, warmup, device: interleaved(candidates, rounds)
    )
    one = (["metala_vit_nano"], [Cell(32, 1, "float32", "infer")])
    for cuda_graphs in (False, True):
        bench_models(*one, compile=True, rounds=1, floor=False, device="cuda", cuda_graphs=cuda_graphs)
    assert modes == [dict(dynamic=False), dict(dynamic=False, mode="reduce-overhead")]
    with pytest.raises(InputError, match="--cuda-graphs: got the device cpu, expected a CUDA device"):
        bench_models(*one, compile=True, cuda_graphs=True)
    with pytest.raises(InputError, match="--cuda-graphs: got it without --compile"):
        bench_models(*one, device="cuda", cuda_graphs=True)


def test_a_model_that_fails_costs_no_other_its_figures():
    """Catches rows of finished sizes that are lost with the one that does not run."""
    names = ["vit_tiny_patch16_224:depth=1", "metala_vit_nano:depth=1"]
    cells = [Cell(size, 1, "float32", "infer") for size in (32, 8)]  # 8 pixels are no whole patch for timm's
    rows = bench_models(names, cells, rounds=3, floor=False)
    assert [("reason" in row, row.get("times_faster") is None) for row in rows] == [
        (False, False),
        (False, False),
        (True, True),
        (False, True),
    ]
    *_, failed, ran = render({"environment": {}, "rows": rows}).splitlines()
    assert rows[2]["reason"] in failed
    assert f"{rows[3]['milliseconds']:.1f}" in ran


def test_a_compiled_model_keeps_its_channels():
    model = timm.create_model("metala_vit_nano", depth=1, in_chans=1)
    assert channels(compiled(model, backend="eager")) == 1
    make_step(compiled(model, backend="eager", dynamic=False), Cell(32, 2, "float32", "infer"))()


def test_unknown_model_lists_near_matches():
    with pytest.raises(InputError, match="unknown model 'metala_vit_tny' .did you mean metala_vit_tiny"):
        create("metala_vit_tny", 32)


def test_tool():
    """Catches output on stdout that is no JSON, and an exit code 0 for an error."""
    tool = ["bench_model.py", "--cells", "32", "--rounds", "1", "--json"]
    good = run_tool(*tool, "--models", "metala_vit_nano")
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["rows"][0]["model"] == "metala_vit_nano"
    bad = run_tool(*tool, "--models", "metala_vit_nan")
    assert bad.returncode == 2
    assert bad.stderr.strip().splitlines()[-1].startswith("error: --models: unknown model")
    none = run_tool(*tool, "--device", "mps")
    assert none.returncode == 2
    assert none.stderr.startswith("error: --device: got 'mps', expected auto, cpu, cuda or cuda:1")
