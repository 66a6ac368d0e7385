"""The benchmark of the data pipelines: every pipeline runs, and its table adds up."""

import numpy as np
import pytest
from PIL import Image

from metala_vision.errors import InputError
from metala_vision.profiling.pipeline import _pipelines, bench_pipelines, render


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{i}.JPEG")
    return tmp_path


def test_every_pipeline_gives_the_same_kind_of_tensor(folder):
    """And evaluation, where nothing is random, nearly the same values."""
    path = folder / "a" / "0.JPEG"
    results = {name: pipeline(path) for name, pipeline in _pipelines(32).items()}
    assert {(tuple(r.shape), str(r.dtype)) for r in results.values()} == {((3, 32, 32), "torch.uint8")}
    ours, *theirs = [r.int() for name, r in results.items() if name.endswith("evaluation")]
    assert len(theirs) == 2
    for other in theirs:
        assert (ours - other).abs().float().mean() < 3


def test_table(folder):
    result = bench_pipelines(str(folder), images=3, rounds=2, img_size=32)
    assert len(result["rows"]) == 11
    assert all(row["images_per_second"] > 0 for row in result["rows"])
    assert {row["speed_of_ours"] for row in result["rows"] if row["pipeline"].startswith("ours")} == {1.0}
    assert all(row["pipeline"] in render(result) for row in result["rows"])
    with pytest.raises(InputError, match="has 3 JPEG files, expected at least 4; see --images"):
        bench_pipelines(str(folder), images=4)
    for name in ("images", "rounds", "img_size"):
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')}: got 0, expected at least 1"):
            bench_pipelines(str(folder), **{"images": 3, name: 0})
