"""Pictures of what mixers look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from metala_vision.figures import save_png

from .maps import token_at
from .memory import reach
from .report import Findings

CELL = 2.2  # inches of a picture
ENDLESS = 1000  # times the tokens of a picture: longer half-lives are drawn there, infinite ones too
ARROWS = {
    "row": "\u2192",
    "row_reverse": "\u2190",
    "column": "\u2193",
    "column_reverse": "\u2191",
}  # right, left, down, up


def plot_maps(
    all_findings: Sequence[Findings],
    picture: Sequence[np.ndarray],
    queries: Sequence[tuple[float, float]],
    head: int | None,
    path: str | Path,
) -> None:
    """A row for each model and query: the picture with the query, then the map of each block over the grey picture.

    Red weights add, blue ones take away; the colours of a panel reach to its largest weight, which its title names.
    Arrows in the titles are the orders of the scans.

    Args:
        all_findings: of each model.
        picture: the one that each model saw, [height, width, chans] uint8.
        queries: places as shares of height and width.
        head: the head that is drawn; None is the mean over the heads.
        path: of the PNG.
    """
    columns = 1 + max(len(found.maps) for found in all_findings)
    rows = len(all_findings) * len(queries)
    figure = Figure(figsize=(CELL * columns, (CELL + 0.35) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for m, (found, pixels) in enumerate(zip(all_findings, picture)):
        height, width = pixels.shape[:2]
        grey = pixels.mean(-1)
        for q, place in enumerate(queries):
            first, *others = panels[m * len(queries) + q]
            first.imshow(pixels.squeeze(), cmap="gray")
            first.set_title(_short(found.name) if q == 0 else "", fontsize=8)
            for panel, block in zip(others, found.maps):
                weights = block.rows[q].mean(0) if head is None else block.rows[q, head]
                limit = max(weights.abs().max().item(), 1e-12)
                panel.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
                panel.imshow(
                    weights.reshape(block.grid),
                    cmap="bwr",
                    vmin=-limit,
                    vmax=limit,
                    alpha=0.65,
                    extent=(0, width, height, 0),
                    interpolation="nearest",
                )
                orders = "".join(f" {ARROWS[order]}" for order in block.orders)
                panel.set_title(f"block {block.block}: {block.mixer}{orders}\nup to {limit:.2g}", fontsize=8)
            for panel in (first, *others[: len(found.maps)]):
                y, x = _centre(place, found.maps[0].grid)
                panel.plot(x * width, y * height, "x", color="black", markersize=9, markeredgewidth=3)
                panel.plot(x * width, y * height, "x", color="yellow", markersize=8, markeredgewidth=1.5)
    save_png(figure, path, dpi=110)


def plot_memory(all_findings: Sequence[Findings], path: str | Path) -> None:
    """The half-life of each head over the depth, from its 10th to its 90th percentile, for each model that scans."""
    scanning = [found for found in all_findings if found.half_lives]
    figure = Figure(figsize=(4.6 * len(scanning), 3.6), layout="constrained")
    panels = figure.subplots(1, len(scanning), squeeze=False, sharey=True)[0]
    for panel, found in zip(panels, scanning):
        heads, tokens = sorted({row["head"] for row in found.half_lives}), found.half_lives[0]["of"]
        for head in heads:
            rows = [row for row in found.half_lives if row["head"] == head]
            x = [row["block"] + 0.12 * (head - (len(heads) - 1) / 2) for row in rows]
            lives = (np.array([row[key] for row in rows]) for key in ("tokens", "low", "high"))
            middle, low, high = (np.minimum(some, ENDLESS * tokens) for some in lives)
            panel.errorbar(
                x, middle, (middle - low, high - middle), fmt="o", markersize=4, capsize=2, label=f"head {head}"
            )
        panel.axhline(tokens, color="grey", linestyle="--", linewidth=1, label="tokens of the picture")
        panel.set(title=_short(found.name), xlabel="block", yscale="log")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        if len(heads) <= 8:
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=8, frameon=False)
    panels[0].set_ylabel("half-life in tokens")
    save_png(figure, path)


def plot_fields(all_findings: Sequence[Findings], place: tuple[float, float], path: str | Path) -> None:
    """How much a token's last feature changes with each pixel, on a logarithmic scale of three decades."""
    figure = Figure(figsize=(3.4 * len(all_findings), 3.6), layout="constrained")
    panels = figure.subplots(1, len(all_findings), squeeze=False)[0]
    for panel, found in zip(panels, all_findings):
        field = found.field.numpy()
        panel.imshow(np.log10(np.maximum(field / field.max(), 1e-3)), cmap="viridis", vmin=-3, vmax=0)
        height, width = field.shape
        y, x = _centre(place, found.maps[0].grid)
        panel.plot(x * width, y * height, "x", color="black", markersize=6)
        half = reach(found.field)["0.5"]
        panel.set_title(f"{_short(found.name)}\nhalf from {100 * half:.2g} % of the pixels", fontsize=8)
        panel.set_axis_off()
    bar = [Line2D([], [], color="none", label="yellow: the most; dark: a thousandth of it, or less")]
    figure.legend(handles=bar, loc="outside lower center", fontsize=8, frameon=False)
    save_png(figure, path)


def _centre(place: tuple[float, float], grid: tuple[int, int]) -> tuple[float, float]:
    """The middle of the token under a place, both as shares of height and width."""
    row, col = divmod(token_at(place, grid), grid[1])
    return (row + 0.5) / grid[0], (col + 0.5) / grid[1]


def _short(name: str) -> str:
    """A model's name for a title; of a file its folder and name."""
    return "/".join(Path(name).parts[-2:]) if Path(name).suffix else name.replace(":", "\n")
