"""Accuracy over image sizes beside time and memory: results of tests and of a sweep of speeds, put together."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metala_vision.description import size_name
from metala_vision.errors import InputError

from .comparison import read_json

Size = int | tuple[int, int]


def gather_sizes(
    accuracy: Mapping[str, Sequence[str | Path]],
    speed: Mapping[str, str] | None = None,
    sweep: str | Path | None = None,
) -> list[dict]:
    """One row for each name and image size.

    Args:
        accuracy: name -> files that `tools/test.py` has left with --resolutions or --img-size, result.json.
        speed: name -> the model as the sweep calls it, for names that have one.
        sweep: folder of `tools/throughput.py`. Its rows of inference in float32 are taken, at square sizes.

    Returns:
        Rows of plain values, by name and then by area: `name`, `size` (a side, or height and width), `images`, `top1`
        of each run, `mean`, `low`, `high`; `milliseconds` of an image, `batch` and `memory_mb` beyond what the process
        had before, None where nothing was measured. A size that was only timed has no `top1`.

    Raises:
        InputError: a file that is no such result, two results of one checkpoint at one size, names that do not match.
    """
    speed = speed or {}
    if unknown := sorted(set(speed) - set(accuracy)):
        raise InputError(f"--speed: {', '.join(unknown)} is the name of no --accuracy, which has {', '.join(accuracy)}")
    if speed and sweep is None:
        raise InputError("--sweep: name the folder of tools/throughput.py that has the speeds")
    timed = _timed(Path(sweep)) if sweep is not None else {}
    rows = []
    for name, files in accuracy.items():
        measured = _measured(name, files)
        times = timed.get(speed.get(name, ""), {})
        if name in speed and not times:
            raise InputError(f"--speed: the sweep has no {speed[name]!r}; it has {', '.join(sorted(timed))}")
        sizes = _in_order({*measured, *times})
        rows += [{"name": name, "size": size, **measured.get(size, {}), **times.get(size, NOT_TIMED)} for size in sizes]
    return rows


NOT_TIMED: dict[str, Any] = {"milliseconds": None, "batch": None, "memory_mb": None}


def _in_order(sizes: Iterable[Size]) -> list[Size]:
    """Each size once, by the pixels of an image."""

    def place(size: Size) -> tuple[int, str]:
        height, width = size if isinstance(size, tuple) else (size, size)
        return height * width, size_name(size)

    return sorted(set(sizes), key=place)


def _measured(name: str, files: Sequence[str | Path]) -> dict[Size, dict]:
    """Accuracy by size, over all checkpoints that the files have."""
    found: dict[Size, dict[str, dict]] = {}
    for file in files:
        content = read_json(Path(file), object)
        for result in content if isinstance(content, list) else [content]:  # --img-size leaves one result
            wanted = ("img_size", "top1", "checkpoint", "images")
            if not isinstance(result, dict) or any(result.get(key) is None for key in wanted):
                raise InputError(f"{name}: {file} has no top1 by img_size, as tools/test.py --resolutions leaves it")
            size = tuple(result["img_size"]) if isinstance(result["img_size"], list) else result["img_size"]
            runs = found.setdefault(size, {})
            if result["checkpoint"] in runs:
                raise InputError(f"{name}: {result['checkpoint']} was tested twice at {size_name(size)}: {file}")
            runs[result["checkpoint"]] = result
    return {size: _summary(name, size, list(runs.values())) for size, runs in found.items()}


def _summary(name: str, size: Size, results: Sequence[dict]) -> dict:
    images = {result["images"] for result in results}
    if len(images) > 1:
        raise InputError(f"{name}: tested on {sorted(images)} images at {size_name(size)}, expected the same number")
    top1 = [round(result["top1"], 2) for result in results]
    # Not of the rounded ones; and one run's mean is not less than its lowest.
    mean = top1[0] if len(top1) == 1 else round(statistics.mean(result["top1"] for result in results), 4)
    return {"images": images.pop(), "top1": top1, "mean": mean, "low": min(top1), "high": max(top1)}


def _timed(folder: Path) -> dict[str, dict[Size, dict]]:
    """Time and memory of an image by model and size."""
    found: dict[str, dict[Size, dict]] = {}
    for row in read_json(folder / "throughput.json", dict).get("rows", []):
        if (row["mode"], row["dtype"], row["sdpa"]) != ("infer", "float32", "default") or not row["milliseconds"]:
            continue
        found.setdefault(row["model"], {})[row["size"]] = {
            "milliseconds": round(row["milliseconds"] / row["batch"], 3),
            "batch": row["batch"],
            "memory_mb": round(row["peak_memory_mb"] - row["baseline_memory_mb"], 1)
            if row["peak_memory_mb"] and row["baseline_memory_mb"] is not None
            else None,
        }
    return found


def render_sizes(rows: Sequence[dict]) -> str:
    """The rows as Markdown tables: accuracy with its range over the runs; milliseconds and megabytes of an image."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    cells = {(row["name"], row["size"]): row for row in rows}
    tested = _in_order(row["size"] for row in rows if "mean" in row)
    tables = [_table("top-1", names, tested, lambda name, size: _accuracy(cells.get((name, size), {})))]
    timed = [row for row in rows if row["milliseconds"] is not None]
    if timed:
        known = list(dict.fromkeys(row["name"] for row in timed))
        costs = {(row["name"], row["size"]): _cost(row) for row in timed}
        title = "ms (MB) of an image"
        sizes = _in_order(row["size"] for row in timed)
        tables.append(_table(title, known, sizes, lambda name, size: costs.get((name, size), "")))
    return "\n\n".join(tables)


def _table(title: str, names: Sequence[str], sizes: Sequence[Size], text: Callable[[str, Size], str]) -> str:
    lines = [f"| {title} | {' | '.join(map(size_name, sizes))} |", "|---" * (1 + len(sizes)) + "|"]
    lines += [f"| {name} | {' | '.join(text(name, size) for size in sizes)} |" for name in names]
    return "\n".join(lines)


def _accuracy(row: Mapping) -> str:
    if "mean" not in row:
        return ""
    return f"{row['mean']:.1f}" + (f" ({row['low']:.1f} to {row['high']:.1f})" if len(row["top1"]) > 1 else "")


def _cost(row: Mapping) -> str:
    memory = "" if row["memory_mb"] is None else f" ({row['memory_mb'] / row['batch']:.0f})"
    milliseconds = row["milliseconds"]
    return f"{milliseconds:.0f}{memory}" if milliseconds >= 100 else f"{milliseconds:.3g}{memory}"
