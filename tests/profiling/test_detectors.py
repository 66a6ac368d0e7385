"""The detectors' benchmark: each backbone has its own time and memory, and one that fails leaves the others theirs."""

import pytest

from metala_vision.errors import InputError
from metala_vision.profiling.detectors import DetectorCandidate, DetectorCell, bench_detectors, render

NAMES = ["vit_tiny_patch16_224", "metala_vit_nano"]


def candidates(kind: str, names: list[str]) -> list[DetectorCandidate]:
    return [DetectorCandidate(name, kind, name) for name in names]


@pytest.mark.long
def test_rows():
    cells = [DetectorCell(96, 128, "infer"), DetectorCell(64, 64, "train", 2)]
    said = []
    report = bench_detectors(candidates("retinanet", NAMES), cells, threads=1, rounds=2, seconds=20.0, show=said.append)
    assert [(row["backbone"], row["mode"]) for row in report["rows"]] == [
        (name, cell.mode) for cell in cells for name in NAMES
    ]
    for row in report["rows"]:
        assert row["rounds"] == 2
        assert row["peak_memory"] > row["baseline_memory"] > 0
    assert [row["times_faster"] for row in report["rows"]][::2] == [1.0, 1.0]
    assert report["environment"]["threads"] == 1
    text = render(report)
    assert "128x96" in text
    assert "64x64, 2 of them" in text
    assert len(said) == 4


def test_one_that_fails_leaves_the_others_theirs():
    """CaiT is made for one size of images alone."""
    both = candidates("fcos", ["cait_xxs24_224", "metala_vit_nano"])
    report = bench_detectors(both, [DetectorCell(64, 96, "infer")], rounds=1)
    broken, fine = report["rows"]
    assert "milliseconds" not in broken
    assert broken["reason"]
    assert fine["milliseconds"] > 0
    assert broken["reason"][:20] in render(report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(candidates=candidates("yolo", NAMES)), "--kind: got 'yolo'"),
        (
            dict(candidates=candidates("fcos", ["metala_vit_tinny"])),
            "--backbones: unknown model 'metala_vit_tinny'.*metala_vit_tiny",
        ),
        (dict(candidates=candidates("fcos", NAMES * 2)), "--backbones, --configs: got .* expected each once"),
        (dict(cells=[DetectorCell(8, 96, "infer")]), "--sizes, --mode: got"),
        (dict(cells=[DetectorCell(96, 96, "eval")]), "--sizes, --mode: got"),
        (dict(rounds=0), "--rounds, --threads: got 0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        bench_detectors(**{**dict(candidates=candidates("fcos", NAMES), cells=[]), **arguments})
