"""Puts runs together that differ in their seed: mean and spread of their accuracy, and what they cost."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from metala_vision.errors import InputError

Kind = TypeVar("Kind", dict, list, object)


def gather(groups: dict[str, Sequence[str | Path]]) -> list[dict]:
    """One row for each group of finished runs.

    Args:
        groups: name -> work_dirs of runs of one config with different seeds.

    Returns:
        Rows of plain values: `name`, `model`, `parameters`, `seeds`, `top1` of each, `mean`, `deviation` (of the
        sample; None for one run), `seconds_per_epoch` and `milliseconds_per_step` (medians over all epochs of all runs,
        with their range), `epochs`, `dataset`, `images`, `precision`, `threads` and `environments` of each, `config`
        (the file's name) and `logs` (of each seed by epoch: training loss, seconds, and the validation's top-1 where
        there is one).

    Raises:
        InputError: a group without runs, a folder without a finished run, two runs with one seed, runs that
            differ in model, data, epochs or precision, or are of no classifier.
    """
    return [_row(name, [Path(folder) for folder in folders]) for name, folders in groups.items()]


def _row(name: str, folders: list[Path]) -> dict:
    if not folders:
        raise InputError(f"{name}: no such folder")
    results, epochs, logs = [], [], []
    for folder in sorted(folders):
        results.append(read_json(folder / "result.json", dict))
        records = read_json(folder / "history.json", list)
        steps = [b["iter"] - a["iter"] for a, b in zip([{"iter": 0}, *records], records)]
        epochs += [(record["seconds"], count) for record, count in zip(records, steps)]
        keys = {"train_loss": "train/loss", "seconds": "seconds", "val_top1": "val/top1"}
        logs.append({name: [record.get(key) for record in records] for name, key in keys.items()})
    seeds = [result["seed"] for result in results]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{name}: two runs have the same seed, {sorted(seeds)}")
    for key in ("model", "parameters", "dataset", "images", "epochs", "precision"):
        found = {result[key] for result in results if key in result}  # older ones do not say their precision
        if len(found) > 1:
            raise InputError(f"{name}: the runs differ in {key}: {sorted(map(str, found))}")
    if not all("top1" in result for result in results):
        raise InputError(f"{name}: its runs have no top1; expected those of classifiers")
    order = sorted(range(len(results)), key=lambda i: seeds[i])
    top1 = [results[i]["top1"] for i in order]
    per_step = [1000 * seconds / count for seconds, count in epochs]
    return {
        "name": name,
        "model": results[0]["model"],
        "parameters": results[0]["parameters"],
        "seeds": [seeds[i] for i in order],
        "top1": top1,
        "mean": round(statistics.mean(top1), 2),
        "deviation": round(statistics.stdev(top1), 2) if len(top1) > 1 else None,
        "seconds_per_epoch": _median([seconds for seconds, _ in epochs]),
        "milliseconds_per_step": _median(per_step),
        "epochs": results[0]["epochs"],
        "dataset": results[0]["dataset"],
        "images": results[0]["images"],
        "precision": next((result["precision"] for result in results if "precision" in result), None),
        "threads": [results[i]["threads"] for i in order],
        "environments": [results[i].get("environment") for i in order],  # older runs do not say theirs
        "config": next((path.name for path in sorted(folders[0].glob("*.py"))), None),
        "logs": [{"seed": seeds[i], **logs[i]} for i in order],
    }


def _median(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 1), "low": round(min(values), 1), "high": round(max(values), 1)}


def read_json(path: Path, kind: type[Kind]) -> Kind:
    """What a run has left in a file, which holds a dict or a list, or any with `object`.

    Raises:
        InputError: no such file, no JSON, or something else in it.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path.parent}: no finished run there, {path.name} is missing") from error
    except OSError as error:
        raise InputError(f"{path}: no file that can be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: no JSON: {error}") from error
    if not isinstance(content, kind):
        raise InputError(f"{path}: a {type(content).__name__} is in it, expected the {kind.__name__} that a run leaves")
    return content


def render(rows: Sequence[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| run | parameters | top-1 of each seed | mean | deviation | s per epoch (range) | ms per step |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        epoch, step = row["seconds_per_epoch"], row["milliseconds_per_step"]
        deviation = "" if row["deviation"] is None else f"{row['deviation']:.2f}"
        lines.append(
            f"| {row['name']} | {row['parameters'] / 1e3:.0f} k | {', '.join(f'{top1:.2f}' for top1 in row['top1'])} | "
            f"{row['mean']:.2f} | {deviation} | {epoch['median']:.0f} ({epoch['low']:.0f} to {epoch['high']:.0f}) | "
            f"{step['median']:.0f} |"
        )
    return "\n".join(lines)
