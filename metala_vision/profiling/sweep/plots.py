"""Pictures of a sweep, fit for a paper."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from metala_vision.figures import save_png

from .rows import lines
from .store import MEASURED


def _plain(value: float, _) -> str:
    return f"{value:g}"


def plot_sweep(rows: Sequence[dict], path: str | Path, baseline: str) -> None:
    """Images per second, peak memory and speed over the baseline's against resolution, a line for each model.

    `rows` are those of one mode and dtype. Log axes; the same model has the same colour, dashed where
    its attention kernel was asked for.
    """
    figure = Figure(figsize=(15, 5.4), layout="constrained")
    panels = figure.subplots(1, 3)
    kinds = {"infer": "inference", "train": "training"}
    columns = (
        ("images_per_second", "images per second", kinds[rows[0]["mode"]]),
        ("peak_memory_mb", "peak memory, MB", f"{rows[0]['dtype']}, batch as in the table"),
        ("ratio", f"times as fast as {baseline}", "an image's time"),
    )
    models = list(dict.fromkeys(row["model"] for row in rows))
    colours = colormaps["tab10" if len(models) <= 10 else "tab20"]
    sizes = sorted({row["size"] for row in rows if row["status"] in MEASURED})
    for panel, (column, title, above) in zip(panels, columns):
        for (_, _, name), mine in lines(rows).items():
            points = [(row["size"], row[column]) for row in mine if row[column] is not None]
            if points:
                named = mine[0]["sdpa"] != "default"
                style = dict(linestyle="--" if named else "-", marker="s" if named else "o", markersize=4)
                panel.plot(*zip(*points), color=colours(models.index(mine[0]["model"]) % 20), label=name, **style)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(sizes, [str(size) for size in sizes], rotation=45)
        panel.set_xticks([], minor=True)
        low, high = panel.get_ylim()
        panel.yaxis.set_major_formatter(_plain)
        panel.yaxis.set_minor_formatter(_plain if high < 10 * low else NullFormatter())
        panel.set(xlabel="side of the image, pixels", ylabel=title, title=above)
        panel.grid(alpha=0.3, which="both")
    panels[2].axhline(1, color="black", linewidth=0.8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save_png(figure, path, dpi=120)
