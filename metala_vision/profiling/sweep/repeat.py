"""How well a second sweep agrees with a first one."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from metala_vision.errors import InputError
from metala_vision.profiling.speed.timing import Spread

from .rows import label, runtime_of
from .store import FILE, MEASURED

WITHIN = 0.15  # of the first median


def agreement(rows: Sequence[dict], folder: str | Path) -> dict:
    """The medians of `rows` over those of the same cells in another sweep's folder.

    Args:
        rows: the rows of `rows.derive`.
        folder: the folder of the other sweep.

    Returns:
        `cells`, how many both sweeps have; the median `ratio` (this sweep's time over the other's); `within`, how many
        are within 15 percent of the other's; `beyond`, the rest, with both medians in milliseconds and both spreads.

    Raises:
        InputError: the folder has no sweep.
    """
    path = Path(folder) / FILE
    try:
        cells = json.loads(path.read_text())["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--against: {path} does not hold measured cells: {error!r}") from error
    others = {_place(cell): cell for cell in cells.values() if cell["status"] in MEASURED}
    ratios, beyond = [], []
    for row in rows:
        other = others.get(_place(row))
        if row["status"] not in MEASURED or other is None or other["batch"] != row["batch"]:
            continue
        spread = Spread(tuple(other["seconds"]))
        ratio = row["milliseconds"] / (1e3 * spread.median)
        ratios.append(ratio)
        if abs(ratio - 1) > WITHIN:
            beyond.append(
                {
                    **{key: row[key] for key in ("model", "sdpa", "mode", "dtype", "size")},
                    "runtime": runtime_of(row),
                    "milliseconds": row["milliseconds"],
                    "milliseconds_before": round(1e3 * spread.median, 3),
                    "spread": row["spread"],
                    "spread_before": round(spread.relative_range, 4) if len(spread.seconds) > 1 else None,
                }
            )
    return {
        "cells": len(ratios),
        "ratio": round(statistics.median(ratios), 4) if ratios else None,
        "within": len(ratios) - len(beyond),
        "beyond": beyond,
    }


def describe(found: dict, folder: str | Path) -> str:
    """The result of `agreement` as a few lines to read."""
    if not found["cells"]:
        return f"against {folder}: no cell that both have"
    lines = [
        f"against {folder}: {found['within']} of {found['cells']} medians within {WITHIN:.0%}, "
        f"in the median {found['ratio']:.3f} times as long"
    ]
    for cell in found["beyond"]:
        was, now = ("alone" if cell[key] is None else f"{cell[key]:.0%}" for key in ("spread_before", "spread"))
        lines.append(
            f"  {label(cell)} {cell['mode']} {cell['dtype']} {cell['size']}: {cell['milliseconds_before']:.1f} ms "
            f"(spread {was}) before, {cell['milliseconds']:.1f} ms ({now}) now"
        )
    return "\n".join(lines)


def _place(row: dict) -> tuple:
    place = tuple(row[key] for key in ("model", "sdpa", "mode", "dtype", "series", "size"))
    return *place, runtime_of(row)
