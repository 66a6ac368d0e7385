"""What a sweep found, for people: table, CSV and plots."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from metala_vision.files import write_atomic, write_json
from metala_vision.profiling.speed.workers import Candidate

from .rows import COLUMNS, exponents, label
from .store import MEASURED


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
    memory = "" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}"
    return f"{speed} {memory:>8} {ratio:>8}"


def save(
    rows: Sequence[dict], environment: dict, folder: str | Path, baseline: Candidate, pictures: bool = True
) -> dict[str, str]:
    """Writes throughput.json, throughput.csv and a picture for each mode and dtype; returns the path of each."""
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
