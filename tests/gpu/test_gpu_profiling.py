"""Sweeps on a GPU: synchronised times, the GPU's memory, and every dtype."""

import pytest
import torch

from metala_vision.profiling import Request, create, measure
from metala_vision.profiling.speed.timing import seconds_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
]


def test_sweep(tmp_path):
    """Catches times of launches instead of kernels, and a batch that is too large for the GPU."""
    request = Request(
        ["metala_vit_tiny", "deit_tiny_patch16_224"],
        [224, 448],
        modes=["infer", "train"],
        dtypes=["float32", "bfloat16", "float16"],
        sdpa=["default", "math"],
        device="cuda",
        rounds=3,
        cell_seconds=20.0,
    )
    result = measure(request, tmp_path)
    assert len(result["rows"]) == 2 * 2 * 3 * 3
    assert {row["status"] for row in result["rows"]} == {"ok"}
    ran = {(row["model"], row["sdpa"]): row["attention"] for row in result["rows"] if row["dtype"] != "float32"}
    assert ran["deit_tiny_patch16_224", "math"] == "math"
    assert ran["deit_tiny_patch16_224", "default"] in ("cudnn", "flash", "efficient")
    assert ran["metala_vit_tiny", "default"] is None
    rows = {(r["model"], r["sdpa"], r["mode"], r["dtype"], r["size"]): r for r in result["rows"]}
    for (model, sdpa, mode, dtype, size), row in rows.items():
        assert row["paired"]
        assert 10 < row["peak_memory_mb"] < 80000
        if mode == "train":
            assert row["milliseconds"] > rows[model, sdpa, "infer", dtype, size]["milliseconds"]
            assert row["peak_memory_mb"] > rows[model, sdpa, "infer", dtype, size]["peak_memory_mb"]


def test_a_kernel_that_is_named_is_the_one_that_runs(tmp_path):
    """Catches another kernel under the name of one that this GPU does not have."""
    sdpa = ["cudnn", "flash", "efficient", "math"]
    request = Request(["deit_tiny_patch16_224"], [224], dtypes=["bfloat16"], sdpa=sdpa, device="cuda", rounds=3)
    rows = {row["sdpa"]: row for row in measure(request, tmp_path)["rows"]}
    assert set(rows) == set(sdpa)
    assert rows["math"]["status"] == rows["efficient"]["status"] == "ok"
    for name, row in rows.items():
        assert (row["status"], row["attention"]) == ("ok", name) or (row["status"] == "failed" and row["reason"])


def test_the_clock_is_that_of_kernels():
    """Catches times of launches, and events of another GPU than the last one: no GPU computes as fast as that."""
    device = f"cuda:{torch.cuda.device_count() - 1}"
    x = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    seconds_of(lambda: x @ x, device)
    assert seconds_of(lambda: x @ x, device, repeats=3) > 2 * 8192**3 / 4e15


def test_too_large_a_batch_is_halved(tmp_path):
    (row,) = measure(Request(["metala_vit_tiny"], [1024], modes=["train"], batch=1 << 14, device="cuda"), tmp_path)[
        "rows"
    ]
    assert row["status"] in ("ok", "alone")
    assert row["batch"] < 1 << 14


def test_counts_do_not_depend_on_the_device():
    pytest.importorskip("fvcore", reason="counting needs fvcore")
    from metala_vision.profiling import count

    for name in ("metala_vit_nano", "deit_tiny_patch16_224"):
        on_gpu, on_cpu = (count(create(name, 64, device), 64) for device in ("cuda", "cpu"))
        assert (on_gpu.macs, on_gpu.torch) == (on_cpu.macs, on_cpu.torch)
