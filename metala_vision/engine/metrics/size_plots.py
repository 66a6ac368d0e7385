"""Accuracy against image size, and against the time of an image."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from metala_vision.description import size_name
from metala_vision.figures import save_png

from .scores import SCORES

MARKERS = ("s", "D", "^", "v", "o")  # of images that are not square


def plot_sizes(
    rows: Sequence[dict],
    path: str | Path,
    title: str | None = None,
    trained: int | None = None,
    score: str = "top1",
) -> None:
    """A score against the side of the images: a line for each name, and a bar from the lowest to the highest run.

    Images that are not square are hollow marks, at the side of a square of their area. Sizes and figures stand beside
    the points where there is one name alone, and the legend tells the marks where there are several.

    Args:
        rows: dicts with `name`, `size` (pixels of the side, or height and width), and `mean`, `low` and `high` of the
            runs, in percent; those without `mean` are left out.
        path: of the PNG.
        title: of the picture.
        trained: side of the training's images in pixels, which is marked.
        score: which of `SCORES` it is, for the axis.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    panel = figure.subplots()
    tested = sorted((row for row in rows if "mean" in row), key=lambda row: _side(row["size"]))
    oblong = list(dict.fromkeys(size_name(row["size"]) for row in tested if not isinstance(row["size"], int)))
    names = list(dict.fromkeys(row["name"] for row in rows if "mean" in row))
    for name in names:
        mine = [row for row in tested if row["name"] == name]
        squares = [row for row in mine if isinstance(row["size"], int)]
        bars = [[row["mean"] - row["low"] for row in squares], [row["high"] - row["mean"] for row in squares]]
        points = [row["size"] for row in squares], [row["mean"] for row in squares]
        line = panel.errorbar(*points, yerr=bars, marker="o", markersize=4, capsize=3, label=name)
        for row in mine:
            place, texts = (_side(row["size"]), row["mean"]), [f"{row['mean']:.1f}"]
            if not isinstance(row["size"], int):
                panel.plot(
                    *place,
                    MARKERS[oblong.index(size_name(row["size"])) % len(MARKERS)],
                    mfc="none",
                    color=line[0].get_color(),
                )
                texts.insert(0, size_name(row["size"]))
            if len(names) == 1:
                panel.annotate(": ".join(texts), place, xytext=(5, 4), textcoords="offset points", fontsize=7)
    if trained is not None:
        panel.axvline(trained, color="0.6", linestyle=":", zorder=0)
        panel.annotate("trained", (trained, 0.95), xycoords=("data", "axes fraction"), fontsize=8, color="0.4")
    panel.set_xscale("log", base=2)
    sides = sorted({row["size"] for row in tested if isinstance(row["size"], int)})
    panel.set_xticks(sides, [str(side) for side in sides])
    panel.set_xticks([], minor=True)
    panel.set(
        xlabel="side of the test images, pixels",
        ylabel=_axis(score),
        title=title,
    )
    panel.margins(x=0.15, y=0.1)  # the words beside the last point stay within the frame
    panel.grid(alpha=0.3)
    if len(names) > 1:
        for marker, name in zip(MARKERS, oblong):
            panel.plot([], [], marker, mfc="none", color="0.4", label=name)
        panel.legend(fontsize=8)
    save_png(figure, path, dpi=150)


def _axis(score: str) -> str:
    return f"{SCORES[score].name},{SCORES[score].unit}".rstrip(",")


def _side(size: int | tuple[int, int]) -> float:
    """The side of a square of the same area."""
    return size if isinstance(size, int) else (size[0] * size[1]) ** 0.5


def plot_accuracy_against_time(rows: Sequence[dict], path: str | Path, score: str = "top1") -> None:
    """A score against the milliseconds of an image, a line through the sizes of each name, which stand at the points.

    `rows` are those of `gather_sizes`; those without accuracy or time are left out. `score` is which of `SCORES` it is.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    panel = figure.subplots()
    both = [row for row in rows if "mean" in row and row["milliseconds"] is not None]
    for name in dict.fromkeys(row["name"] for row in both):
        mine = [row for row in both if row["name"] == name]
        panel.plot([row["milliseconds"] for row in mine], [row["mean"] for row in mine], "o-", markersize=4, label=name)
        for row in mine:
            place = row["milliseconds"], row["mean"]
            panel.annotate(size_name(row["size"]), place, xytext=(4, 4), textcoords="offset points", fontsize=7)
    panel.set_xscale("log")
    panel.margins(x=0.1)
    panel.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set(xlabel="milliseconds of an image", ylabel=_axis(score))
    panel.grid(alpha=0.3)
    panel.legend()
    save_png(figure, path, dpi=150)
