"""What is computed of a sweep's cells: speeds, ratios and exponents."""

from metala_vision.profiling.speed.workers import Candidate
from metala_vision.profiling.sweep.rows import derive, exponents


def test_derived_figures():
    """By hand: batch 2 in 0.5, 0.4 and 0.6 s; the baseline's batch 4 in 2, 2 and 1.2 s of the same rounds."""
    common = dict(mode="infer", dtype="float32", series="batch auto", size=64, status="ok", tokens=16, sdpa="default")
    common |= dict(peak_memory=3e6, baseline_memory=1e6, race="r")
    cells = {
        "mine": dict(common, model="a", batch=2, seconds=[0.5, 0.4, 0.6]),
        "base": dict(common, model="b", batch=4, seconds=[3.0, 3.0, 3.0], race="earlier"),
    }
    races = {"r": {"mine": [0.5, 0.4, 0.6], "base": [2.0, 2.0, 1.2]}, "earlier": {"base": [3.0, 3.0, 3.0]}}
    row, base = derive(cells, races, Candidate("b"))
    assert row["images_per_second"] == 4
    assert row["tokens_per_second"] == 64
    assert row["milliseconds"] == 500
    assert row["peak_memory_mb"] == 3
    assert row["ratio"] == 2.0  # rounds of 4, 5 and 2 times the time, for twice the images
    assert row["paired"]
    assert base["ratio"] == 1
    row, _ = derive(cells, {}, Candidate("b"))
    assert not row["paired"]
    assert row["ratio"] == 3.0


def test_exponents():
    rows = [
        dict(model="a", sdpa="default", mode="infer", dtype="float32", series="batch auto", size=s, status="ok")
        | {"milliseconds": 2 * (s / 1024) ** 3, "batch": 2}
        for s in (512, 1024, 2048, 4096)
    ]
    (fit,) = exponents(rows)
    assert fit["exponent"] == 1.5
    assert fit["sizes"] == [1024, 2048, 4096]


# --- the command line
