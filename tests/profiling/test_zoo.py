"""model_zoo.md is what the results say, and the results are what the models are."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from metala_vision.errors import InputError
from metala_vision.profiling.macs.formulas import formula
from metala_vision.profiling.speed.steps import create
from metala_vision.profiling.zoo import build

ROOT = Path(__file__).resolve().parents[2]
TOOL = [sys.executable, str(ROOT / "tools" / "model_zoo.py")]


def test_the_page_is_not_stale():
    assert (ROOT / "model_zoo.md").read_text() == build(ROOT), "run tools/model_zoo.py"


def test_figures_of_papers_are_there():
    """Catches headers of configs that are not understood, and cells left empty for it."""
    lines = (ROOT / "model_zoo.md").read_text().splitlines()
    for config, figure in (
        ("metala_vit_tiny_224_imagenet_300e_paper", "75.33 | arXiv 2411.10741"),
        ("metala_vit_small_224_imagenet_300e_paper", "80.14 | arXiv 2411.10741"),
        ("deit_base_224_imagenet_300e_deit", "81.8 | "),
    ):
        (line,) = [line for line in lines if f"[{config}]" in line and "top-1" not in line]
        assert f"|  | {figure}" in line  # and nothing measured


def test_pictures_and_links_are_there():
    text = (ROOT / "model_zoo.md").read_text()
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    assert len(links) > 20
    assert not [link for link in links if not (ROOT / link).is_file()]


def test_stored_counts_are_those_of_the_models():
    """Catches a model that was changed and not counted again."""
    rows = json.loads((ROOT / "results" / "flops.json").read_text())["rows"]
    assert len(rows) > 20
    for row in rows:
        model = create(row["model"], tuple(row["size"]), "meta")
        stored = (row["model"], row["size"], row["macs"], row["parameters"])
        parameters = sum(p.numel() for p in model.parameters())
        assert (*stored[:2], formula(model, tuple(row["size"])).macs, parameters) == stored


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what the page is made from."""
    for folder in ("results", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


@pytest.mark.long
def test_a_stale_page_is_told(checkout):
    command = [*TOOL, "--root", str(checkout), "--json"]
    done = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not what results/ and configs/ say: run tools/model_zoo.py" in done.stderr
    assert not (checkout / "model_zoo.md").exists()
    (checkout / "model_zoo.md").write_text(build(checkout))
    assert (checkout / "model_zoo.md").read_text() == (ROOT / "model_zoo.md").read_text()


@pytest.mark.slow
def test_the_page_is_written(checkout):
    assert subprocess.run([*TOOL, "--root", str(checkout)], capture_output=True).returncode == 0
    assert (checkout / "model_zoo.md").read_text() == build(checkout)


def test_accuracy_over_sizes(checkout):
    """Catches a result over sizes that is taken for one of several seeds, and pictures that are not there."""
    before = build(checkout)
    rows = [dict(name="ours", size=160, top1=[60.0], mean=60.0), dict(name="ours", size=1280, milliseconds=3.0)]
    (checkout / "results" / "x_sizes.json").write_text(json.dumps({"rows": rows, "trained": 160}))
    (checkout / "results" / "x_sizes.png").touch()
    page = build(checkout)
    assert "[x_sizes.json](results/x_sizes.json)\n\n![top-1 against the size](results/x_sizes.png)\n" in page
    assert "x_sizes_time.png" not in page
    (checkout / "results" / "x_sizes_time.png").touch()
    assert "![top-1 against the time of an image](results/x_sizes_time.png)" in build(checkout)
    for name in ("x_sizes.json", "x_sizes.png", "x_sizes_time.png"):
        (checkout / "results" / name).unlink()
    assert build(checkout) == before


def test_what_the_page_cannot_do_without(checkout):
    counts = checkout / "results" / "flops.json"
    report = json.loads(counts.read_text())
    ours = timm.list_models("metala_vit_*")[0]
    counts.write_text(json.dumps({**report, "rows": [row for row in report["rows"] if row["model"] != ours]}))
    with pytest.raises(InputError, match=f"no counts of {ours}"):
        build(checkout)
    counts.write_text("{")
    with pytest.raises(InputError, match=r"flops\.json is no JSON"):
        build(checkout)
    counts.unlink()
    with pytest.raises(InputError, match=r"flops\.json is missing"):
        build(checkout)
