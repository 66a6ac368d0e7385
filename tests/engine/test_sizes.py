"""Accuracy over image sizes beside time and memory, by hand-made results."""

import functools
import json

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from metala_vision.engine.metrics import size_plots
from metala_vision.engine.sizes import gather_sizes, render_sizes
from metala_vision.errors import InputError


@pytest.fixture
def tested(tmp_path):
    """make(name, {checkpoint: {size: top1}}, images) -> the file that tools/test.py leaves."""

    def make(name, runs, images=100):
        results = [
            dict(img_size=size, top1=top1, checkpoint=checkpoint, images=images, model="m")
            for checkpoint, sizes in runs.items()
            for size, top1 in sizes.items()
        ]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(results))
        return path

    return make


@pytest.fixture
def sweep(tmp_path):
    """A folder with a sweep: two models, training and an attention kernel by name beside."""
    row = dict(mode="infer", dtype="float32", sdpa="default", batch=4, peak_memory_mb=300.0, baseline_memory_mb=100.0)
    rows = [
        {**row, "model": model, "size": size, "milliseconds": milliseconds}
        for model, times in {"a:depth=6": {160: 20.0, 320: 80.0}, "b": {160: 30.0}}.items()
        for size, milliseconds in times.items()
    ]
    others = [dict(mode="train"), dict(dtype="bfloat16"), dict(sdpa="math"), dict(size=640, milliseconds=None)]
    rows += [{**rows[0], "milliseconds": 999.0, **other} for other in others]
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "throughput.json").write_text(json.dumps({"rows": rows}))
    return tmp_path / "sweep"


def test_seeds_sizes_and_times(tested, sweep):
    first = tested("first", {"s0/last.pth": {160: 60.0046, 320: 50.0, (320, 160): 55.0}})
    second = tested("second", {"s1/last.pth": {160: 63.0, 320: 56.0}})
    vit = tested("vit", {"v/last.pth": {160: 40.0, 224: 42.0}})
    rows = gather_sizes({"ours": [first, second], "vit": [vit]}, {"ours": "a:depth=6", "vit": "b"}, sweep)
    assert [(row["name"], row["size"]) for row in rows] == [
        *(("ours", size) for size in (160, (320, 160), 320)),
        *(("vit", size) for size in (160, 224)),
    ]
    ours = rows[0]
    assert (ours["top1"], ours["low"], ours["high"]) == ([60.0, 63.0], 60.0, 63.0)
    assert ours["mean"] == 61.5023  # of the figures before they are rounded
    assert (ours["milliseconds"], ours["batch"], ours["memory_mb"]) == (5.0, 4, 200.0)
    assert rows[1]["top1"] == [55.0]
    assert rows[1]["milliseconds"] is rows[4]["milliseconds"] is None
    assert rows[3]["milliseconds"] == 7.5
    accuracy, cost = render_sizes(rows).split("\n\n")
    assert accuracy.splitlines() == [
        "| top-1 | 160 | 224 | 320x160 | 320 |",
        "|---|---|---|---|---|",
        "| ours | 61.5 (60.0 to 63.0) |  | 55.0 | 53.0 (50.0 to 56.0) |",
        "| vit | 40.0 | 42.0 |  |  |",
    ]
    assert cost.splitlines()[2:] == ["| ours | 5 (50) | 20 (50) |", "| vit | 7.5 (50) |  |"]


def test_sizes_that_were_only_timed(tested, sweep):
    rows = gather_sizes({"ours": [tested("x", {"a": {160: 60.0}})]}, {"ours": "a:depth=6"}, sweep)
    assert rows[1] == {"name": "ours", "size": 320, "milliseconds": 20.0, "batch": 4, "memory_mb": 200.0}
    assert "| ours | 60.0 |" in render_sizes(rows)
    assert render_sizes(gather_sizes({"ours": [tested("y", {"a": {160: 60.0}})]})).count("|---") == 2


def test_results_of_single_sizes(tmp_path):
    """Catches the result of --img-size, which is no list, refused beside those of --resolutions."""
    for size, top1 in ((160, 60.0), (480, 50.0)):
        result = dict(img_size=size, top1=top1, checkpoint="a", images=100)
        (tmp_path / f"{size}.json").write_text(json.dumps(result if size == 480 else [result]))
    rows = gather_sizes({"ours": [tmp_path / "160.json", tmp_path / "480.json"]})
    assert [(row["size"], row["mean"]) for row in rows] == [(160, 60.0), (480, 50.0)]


def test_what_does_not_fit(tested, sweep, tmp_path):
    file = tested("x", {"a": {160: 60.0}})
    with pytest.raises(InputError, match="ours: a was tested twice at 160"):
        gather_sizes({"ours": [file, file]})
    with pytest.raises(InputError, match=r"ours: tested on \[50, 100\] images at 160, expected the same number"):
        gather_sizes({"ours": [file, tested("y", {"b": {160: 61.0}}, images=50)]})
    with pytest.raises(InputError, match="--speed: theirs is the name of no --accuracy, which has ours"):
        gather_sizes({"ours": [file]}, {"theirs": "b"}, sweep)
    with pytest.raises(InputError, match="--speed: the sweep has no 'c'; it has a:depth=6, b"):
        gather_sizes({"ours": [file]}, {"ours": "c"}, sweep)
    with pytest.raises(InputError, match="--sweep: name the folder"):
        gather_sizes({"ours": [file]}, {"ours": "b"})
    with pytest.raises(InputError, match="throughput.json is missing"):
        gather_sizes({"ours": [file]}, {"ours": "b"}, tmp_path)
    one = functools.partial(dict, img_size=160, top1=60.0, checkpoint="a", images=100)
    for content in (dict(map=0.5), one(img_size=None), one(top1=None)):
        (tmp_path / "other.json").write_text(json.dumps([content]))
        with pytest.raises(InputError, match="ours: .*other.json has no top1 by img_size, as tools/test.py --resolut"):
            gather_sizes({"ours": [tmp_path / "other.json"]})
    with pytest.raises(InputError, match="no file that can be read: Is a directory"):
        gather_sizes({"ours": [tmp_path]})


def test_tool(tested, sweep, tmp_path, load_tool, capsys):
    """The tables, the JSON, and two pictures."""
    seeds = {"s0": {160: 60.0, 320: 50.0, (320, 160): 52.0}, "s1": {160: 61.0, 320: 52.0, (320, 160): 53.0}}
    ours = tested("ours", seeds)
    vit = tested("vit", {"v": {160: 40.0463}})  # one run's mean is not less than its lowest, however it is rounded
    tool = load_tool("accuracy_at_sizes.py")
    options = ["--accuracy", "ours", str(ours), "--accuracy", "vit", str(vit), "--trained", "160"]
    options += ["--sweep", str(sweep), "--speed", "ours", "a:depth=6", "--speed", "vit", "b"]
    result = tool(*options, "--out", str(tmp_path / "sizes"))
    assert "| ours | 60.5 (60.0 to 61.0) |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "sizes.json").read_text())["rows"]) == len(result["rows"]) == 4
    for name in ("sizes.png", "sizes_time.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 800
    with pytest.raises(InputError, match="--accuracy: got ours, ours, expected no name twice"):
        tool("--accuracy", "ours", str(ours), "--accuracy", "ours", str(vit))
    with pytest.raises(InputError, match="--accuracy: no file behind the name ours"):
        tool("--accuracy", "ours")


def test_words_of_pictures_stay_within_them(tmp_path, monkeypatch):
    """Catches a word beside the last point that runs over the frame: one that is not square, of one or two models."""
    drawn = []
    monkeypatch.setattr(size_plots, "save_png", lambda figure, *_, **__: drawn.append(figure))
    row = dict(mean=66.02, low=65.1, high=66.9, milliseconds=11.0)
    rows = [dict(row, name=name, size=size) for name in ("one", "other") for size in (96, 160, (160, 320))]
    size_plots.plot_sizes(rows, tmp_path / "sizes.png")
    size_plots.plot_sizes(rows[:3], tmp_path / "sizes.png", trained=160)
    size_plots.plot_accuracy_against_time([dict(r, milliseconds=i + 1) for i, r in enumerate(rows)], tmp_path / "t.png")
    for figure in drawn:
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        (panel,) = figure.axes
        frame = panel.get_window_extent(renderer)
        assert [word for word in panel.texts if word.get_window_extent(renderer).x1 > frame.x1] == []
