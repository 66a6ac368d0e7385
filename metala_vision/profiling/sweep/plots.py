"""Pictures of a sweep, fit for a paper."""

import math
import textwrap
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from metala_vision.figures import save_png

from .rows import lines, runtime_of
from .store import MEASURED

MARKERS = {"eager": "o", "compile": "^", "onnxruntime": "v", "openvino": "D"}
LEAST_RANGE = 4.0  # of an axis, the highest value over the lowest


def _plain(value: float, _) -> str:
    return f"{value:g}"


def plot_sweep(rows: Sequence[dict], path: str | Path, baseline: str) -> None:
    """Images per second, peak memory and speed over the baseline's against resolution, a line for each model.

    `rows` are those of one mode and dtype. The axes are logarithmic. A model has one colour; its line is dashed where
    an attention kernel was asked for, and dotted from one batch to another. Runtimes differ in their markers.
    """
    figure = Figure(figsize=(15, 5.4), layout="constrained")
    panels = figure.subplots(1, 3)
    kinds = {"infer": "inference", "train": "training"}
    joined = len({row["batch"] for row in rows if row["status"] in MEASURED}) == 1
    batch = f"batch {rows[0]['batch']}" if joined else "dotted where the batch changes"
    columns = (
        ("images_per_second", "images per second", kinds[rows[0]["mode"]]),
        ("peak_memory_mb", "peak memory, MB", f"{rows[0]['dtype']}, {batch}"),
        ("ratio", textwrap.fill(f"times as fast as {baseline}", 36), "an image's time"),
    )
    models = list(dict.fromkeys(row["model"] for row in rows))
    colours = colormaps["tab10" if len(models) <= 10 else "tab20"]
    sizes = sorted({row["size"] for row in rows if row["status"] in MEASURED})
    for panel, (column, title, above) in zip(panels, columns):
        for (_, _, name), mine in lines(rows).items():
            if column == "ratio" and name == baseline:  # it is the line at 1
                continue
            named = mine[0]["sdpa"] != "default"
            marker = "s" if named else MARKERS[runtime_of(mine[0])]
            style: dict[str, Any] = dict(linestyle="--" if named else "-", marker=marker, markersize=4)
            style["color"] = colours(models.index(mine[0]["model"]) % 20)
            measured = [row for row in mine if row[column] is not None]
            parts = [list(some) for _, some in groupby(measured, key=lambda row: row["batch"])]
            for index, part in enumerate(parts):
                points = [(row["size"], row[column]) for row in part]
                panel.plot(*zip(*points), label=None if index else name, **style)
            for before, after in pairwise(parts):
                points = [(row["size"], row[column]) for row in (before[-1], after[0])]
                panel.plot(*zip(*points), color=style["color"], linestyle=":", linewidth=0.8)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(sizes, [str(size) for size in sizes], rotation=45)
        panel.set_xticks([], minor=True)
        low, high = panel.get_ylim()
        if high < LEAST_RANGE * low:  # a difference of a few percent should look like one
            middle, half = math.sqrt(low * high), math.sqrt(LEAST_RANGE)
            panel.set_ylim(middle / half, middle * half)
        wide = high > 10 * low
        panel.yaxis.set_major_locator(
            LogLocator(subs=(1,) if high > 1000 * low else (1, 2, 5)) if wide else MaxNLocator(6)
        )
        panel.yaxis.set_major_formatter(_plain)
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set(xlabel="side of the image, pixels", ylabel=title, title=above)
        panel.grid(alpha=0.3, which="both")
    panels[2].axhline(1, color="black", linewidth=0.8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save_png(figure, path, dpi=120)
