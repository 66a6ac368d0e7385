"""A picture of counts, fit for a paper."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from metala_vision.figures import save_png


def plot_macs(rows: Sequence[dict], path: str | Path) -> None:
    """GMACs against resolution, log axes, a line for each model and a dotted one for its token mixers."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panel = figure.subplots()
    sides = sorted({_side(row) for row in rows})
    for number, name in enumerate(dict.fromkeys(row["model"] for row in rows)):
        mine = sorted(
            (_side(row), row["macs"] / 1e9, row["mixer"] and row["mixer"] / 1e9) for row in rows if row["model"] == name
        )
        panel.plot([m[0] for m in mine], [m[1] for m in mine], marker="o", color=f"C{number}", label=name)
        if mine[0][2] is not None:
            panel.plot([m[0] for m in mine], [m[2] for m in mine], linestyle=":", color=f"C{number}", linewidth=1)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(sides, [f"{side:.0f}" for side in sides])
    panel.set_xticks([], minor=True)
    panel.set(xlabel="side of the image, pixels", ylabel="GMACs of one image (dotted: token mixers alone)")
    panel.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper")
    save_png(figure, path, dpi=120)


def _side(row: dict) -> float:
    """The side of a square of as many pixels."""
    return (row["size"][0] * row["size"][1]) ** 0.5
