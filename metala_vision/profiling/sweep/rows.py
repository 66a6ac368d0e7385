"""The rows of a sweep with all that follows from them: speeds, ratios, and exponents of time against tokens."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from metala_vision.profiling.speed.steps import DTYPES, MODES
from metala_vision.profiling.speed.timing import Spread
from metala_vision.profiling.speed.workers import Candidate

from .store import MEASURED

COLUMNS = (
    *("model", "sdpa", "runtime", "runtime_version", "attention", "mode", "dtype", "series", "size", "batch", "status"),
    *("milliseconds", "spread", "rounds", "images_per_second", "tokens_per_second"),
    *("peak_memory_mb", "baseline_memory_mb", "ratio", "paired"),
    *("parameters", "requested", "clock_mhz", "measured", "reason"),
)


def derive(
    cells: dict[str, dict],
    races: dict[str, dict[str, list[float]]],
    baseline: Candidate,
    beside: dict[str, dict] | None = None,
) -> list[dict]:
    """One flat row for each cell of a `Store`, with what can be computed from it.

    `milliseconds` (median of a step) and `spread` (distance of the quartiles over it); images and tokens per second;
    megabytes of memory; `ratio`, how many times as long the baseline takes for an image: over the rounds that both ran
    in turn (`paired`) or, where one of them was timed alone, from the medians. Cells without a figure have None.
    `attention` is None for models that do not call PyTorch's softmax attention, and where it was not looked for. The
    baseline's cells are in `beside`, if that is given, and otherwise in `cells`.
    """
    pool = cells if beside is None else beside
    keys = {_place(row): key for key, row in pool.items() if (row["model"], row["sdpa"], runtime_of(row)) == baseline}
    rows = []
    for key, row in cells.items():
        theirs = keys.get(_place(row))
        rounds = races.get(row.get("race", ""), {})
        both = (rounds[theirs], rounds[key]) if theirs in rounds and key in rounds else None
        rows.append(_derived(row, None if theirs is None else pool[theirs], both))
    return rows


def in_order(rows: list[dict]) -> list[dict]:
    """Inference before training, float32 before others, by resolution."""
    return sorted(rows, key=lambda row: (MODES.index(row["mode"]), DTYPES.index(row["dtype"]), row["size"]))


def _place(row: dict) -> tuple:
    """What a cell and the baseline's cell to compare it with have in common."""
    return row["mode"], row["dtype"], row["series"], row["size"]


def _derived(row: dict, baseline: dict | None, beside: tuple[list[float], list[float]] | None) -> dict:
    flat: dict[str, Any] = {name: row.get(name) for name in COLUMNS} | {"runtime": runtime_of(row)}
    for kind in ("peak", "baseline"):
        value = row.get(f"{kind}_memory")
        flat[f"{kind}_memory_mb"] = None if value is None else round(value / 1e6, 1)
    if row["status"] not in MEASURED:
        return flat
    spread = Spread(tuple(row["seconds"]))
    flat["milliseconds"] = round(1e3 * spread.median, 3)
    flat["rounds"] = len(spread.seconds)
    flat["spread"] = round(spread.relative_range, 4) if flat["rounds"] > 1 else None
    flat["images_per_second"] = float(f"{row['batch'] / spread.median:.6g}")
    if row["tokens"]:
        flat["tokens_per_second"] = float(f"{row['tokens'] * row['batch'] / spread.median:.6g}")
    if baseline is not None and baseline["status"] in MEASURED:
        flat["paired"] = beside is not None
        theirs, mine = (Spread(tuple(x)) for x in beside or (baseline["seconds"], row["seconds"]))
        ratio = theirs.ratio_to(mine) if flat["paired"] else theirs.median / mine.median
        flat["ratio"] = round(ratio * row["batch"] / baseline["batch"], 4)
    return flat


def exponents(rows: Sequence[dict], smallest: int = 1024) -> list[dict]:
    """Fitted p of time ~ tokens^p over the resolutions from `smallest` on, for every model with at least two of them.

    `rows` are those of `derive`. Tokens are taken to grow with the image's area; the logarithms are fitted by least
    squares.
    """
    found = []
    for name, mine in lines(rows).items():
        times = [(r["size"], r["milliseconds"] / r["batch"]) for r in mine if r["size"] >= smallest]
        points = [(2 * math.log(size), math.log(milliseconds)) for size, milliseconds in times]
        if len(points) > 1:
            slope, _ = statistics.linear_regression(*zip(*points))
            sizes = [r["size"] for r in mine if r["size"] >= smallest]
            fields = {key: mine[0][key] for key in ("model", "sdpa", "mode", "dtype", "series")}
            fields["runtime"] = runtime_of(mine[0])
            found.append({**fields, "exponent": round(slope, 3), "sizes": sizes, "line": name[2]})
    return found


def runtime_of(row: dict) -> str:
    """What ran a cell; figures from before there was a choice do not say."""
    return row.get("runtime", "eager")


def label(row: dict) -> str:
    """What a model is called in tables and plots, with the attention kernel and the runtime if they were asked for."""
    asked = ("" if row["sdpa"] == "default" else f", {row['sdpa']}", f", {runtime_of(row)}")
    return row["model"] + "".join(asked).removesuffix(", eager")


def brief(row: dict) -> str:
    """One cell in a few words, before anything is derived."""
    if row["status"] not in MEASURED:
        return f"{row['status']}: {row['reason']}"
    seconds = statistics.median(row["seconds"])
    memory = "" if row["peak_memory"] is None else f", {row['peak_memory'] / 1e6:.0f} MB"
    return f"{1e3 * seconds:.1f} ms{memory}" + (", alone" if row["status"] == "alone" else "")


def lines(rows: Sequence[dict]) -> dict[tuple, list[dict]]:
    """(mode, dtype, label) -> its measured rows by resolution."""
    lines: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["size"]):
        if row["status"] in MEASURED:
            lines.setdefault((row["mode"], row["dtype"], label(row)), []).append(row)
    return lines
