"""What a sweep found, for people: table, CSV, plots, and exponents of time against tokens."""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from metala_vision.files import write_atomic, write_json

from .steps import DTYPES, MODES
from .store import MEASURED
from .timing import Spread
from .workers import Candidate

COLUMNS = (
    *("model", "sdpa", "attention", "mode", "dtype", "series", "size", "batch", "status"),
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
    """One flat row for each cell of a `Store`, with what can be computed of it.

    `milliseconds` (median of a step) and `spread` (distance of the quartiles over it); images and tokens per second;
    megabytes of memory; `ratio`, how many times as long the baseline's image takes, over the rounds that both ran in
    turn (`paired`) or, where one of them was timed alone, of the medians. Cells without a figure have None. `attention`
    is None for models that call no softmax attention of PyTorch's, and where it was not looked for. `beside` is
    where the baseline's cells are, if not among these.
    """
    pool = cells if beside is None else beside
    keys = {_place(row): key for key, row in pool.items() if (row["model"], row["sdpa"]) == baseline}
    rows = []
    for key, row in cells.items():
        theirs = keys.get(_place(row))
        rounds = races.get(row.get("race"), {})
        both = (rounds[theirs], rounds[key]) if theirs in rounds and key in rounds else None
        rows.append(_derived(row, None if theirs is None else pool[theirs], both))
    return rows


def in_order(rows: list[dict]) -> list[dict]:
    """Inference before training, float32 before others, by resolution."""
    return sorted(rows, key=lambda row: (MODES.index(row["mode"]), DTYPES.index(row["dtype"]), row["size"]))


def _place(row: dict) -> tuple:
    """What a cell and the baseline's share."""
    return row["mode"], row["dtype"], row["series"], row["size"]


def _derived(row: dict, baseline: dict | None, beside: tuple[list[float], list[float]] | None) -> dict:
    flat = {name: row.get(name) for name in COLUMNS}
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

    `rows` are those of `derive`. Tokens are those of the image's area; the fit is least squares of the logarithms.
    """
    found = []
    for name, mine in lines(rows).items():
        times = [(r["size"], r["milliseconds"] / r["batch"]) for r in mine if r["size"] >= smallest]
        points = [(2 * math.log(size), math.log(milliseconds)) for size, milliseconds in times]
        if len(points) > 1:
            slope, _ = statistics.linear_regression(*zip(*points))
            sizes = [r["size"] for r in mine if r["size"] >= smallest]
            fields = {key: mine[0][key] for key in ("model", "sdpa", "mode", "dtype", "series")}
            found.append({**fields, "exponent": round(slope, 3), "sizes": sizes, "line": name[2]})
    return found


def label(row: dict) -> str:
    """A model as it is called in tables and plots: an attention kernel that was asked for is named."""
    return row["model"] + ("" if row["sdpa"] == "default" else f", {row['sdpa']}")


def brief(row: dict) -> str:
    """One cell in a few words, before anything is derived."""
    if row["status"] not in MEASURED:
        return f"{row['status']}: {row['reason']}"
    seconds = statistics.median(row["seconds"])
    return f"{1e3 * seconds:.1f} ms, {row['peak_memory'] / 1e6:.0f} MB" + (
        ", alone" if row["status"] == "alone" else ""
    )


def lines(rows: Sequence[dict]) -> dict[tuple, list[dict]]:
    """(mode, dtype, label) -> its measured rows by resolution."""
    lines: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=lambda row: row["size"]):
        if row["status"] in MEASURED:
            lines.setdefault((row["mode"], row["dtype"], label(row)), []).append(row)
    return lines


def render(rows: Sequence[dict], environment: dict, baseline: Candidate) -> str:
    """The table as text; `rows` are those of `derive`."""
    text = [
        ", ".join(f"{key} {value}" for key, value in environment.items()),
        "medians of rounds taken in turn; spread: quartiles' distance over the median;"
        f" x: times as fast as {label(baseline._asdict())};"
        " * one step alone; ~ not of the same rounds",
    ]
    group = None
    for row in rows:
        if (row["mode"], row["dtype"]) != group:
            group = (row["mode"], row["dtype"])
            titles = f"{'ms':>10} {'spread':>7} {'images/s':>9} {'tokens/s':>9} {'peak MB':>8} {'x':>7}"
            text += ["", f"{row['mode']}, {row['dtype']}", f"{'pixels':>6} {'batch':>5}  {'model':34} {titles}"]
        text.append(f"{row['size']:>6} {row['batch']:>5}  {label(row):34} {_figures(row)}")
    for fit in exponents(rows):
        text.append(
            f"{fit['line']}, {fit['mode']}, {fit['dtype']}: time grows with tokens^{fit['exponent']:.3f} from "
            f"{fit['sizes'][0]} to {fit['sizes'][-1]} pixels"
        )
    return "\n".join(text)


def _figures(row: dict) -> str:
    if row["status"] not in MEASURED:
        return f"{row['status']}: {row['reason']}"
    spread = "      *" if row["status"] == "alone" else f"{row['spread'] or 0:7.0%}"
    tokens = "" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:9.0f}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:7.2f}{' ' if row['paired'] else '~'}"
    speed = f"{row['milliseconds']:10.1f} {spread} {row['images_per_second']:9.3f} {tokens:>9}"
    return f"{speed} {row['peak_memory_mb']:8.0f} {ratio:>8}"


def save(
    rows: Sequence[dict], environment: dict, folder: str | Path, baseline: Candidate, pictures: bool = True
) -> dict[str, str]:
    """Writes throughput.json, throughput.csv and a picture for each mode and dtype; returns what is where."""
    folder = Path(folder)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    paths = {"json": folder / "throughput.json", "csv": folder / "throughput.csv"}
    content = {"rows": rows, "exponents": exponents(rows), "environment": environment, "baseline": baseline._asdict()}
    write_json(paths["json"], content)
    write_atomic(paths["csv"], text.getvalue().encode())
    if not pictures:
        return {kind: str(path) for kind, path in paths.items()}
    from .plots import plot_sweep  # matplotlib is no dependency of the library

    for mode, dtype in dict.fromkeys((row["mode"], row["dtype"]) for row in rows):
        mine = [row for row in rows if (row["mode"], row["dtype"]) == (mode, dtype)]
        if any(row["status"] in MEASURED for row in mine):
            paths[f"{mode} {dtype}"] = folder / f"throughput_{mode}_{dtype}.png"
            plot_sweep(mine, paths[f"{mode} {dtype}"], label(baseline._asdict()))
    return {kind: str(path) for kind, path in paths.items()}
