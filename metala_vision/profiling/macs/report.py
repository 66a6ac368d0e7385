"""Several models at several sizes, counted: what tools/flops.py calls."""

import csv
import io
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from metala_vision.errors import InputError
from metala_vision.files import write_atomic, write_json
from metala_vision.profiling.environment import environment
from metala_vision.profiling.speed.isolated import one_line
from metala_vision.profiling.speed.steps import check_models, create

from .count import Cost, count

CONVENTION = "multiply-accumulates of one image: norms 5 an element, element-wise work and softmax nothing"


def parse_size(text: str) -> int | tuple[int, int]:
    """ "512" -> 512, "480x640" -> (480, 640), height first. InputError for anything else."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise InputError(f"--img-size: got {text!r}, expected a side or HEIGHTxWIDTH in pixels, such as 512 or 480x640")
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def count_models(
    names: Sequence[str], sizes: Sequence[int | tuple[int, int]], allow: Collection[str] = (), depth: int = 0
) -> dict:
    """Counts every model at every size, with its modules down to `depth`.

    Returns:
        `rows`, one for each model and size: `model`, `size` as [height, width], and the fields of `count.Cost`, where
        `formula` is its MACs alone; `failures`, with `model`, `size` and `reason`, of the models that do not run at a
        size or that have an operator without a count; the `convention`; and the `environment`.

    Raises:
        InputError: a model that timm does not know.
    """
    check_models(names)
    rows, failures = [], []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(names) * len(sizes))
        for name in names:
            for size in sizes:
                progress.update(task, description=f"{name} {_text(size)}")
                try:
                    rows.append(_row(name, size, allow, depth))
                except Exception as error:  # whatever another library's model raises at a size: the others go on
                    reason = str(error) if isinstance(error, InputError) else one_line(error)
                    failures.append({"model": name, "size": _text(size), "reason": reason})
                progress.advance(task)
    return {"rows": rows, "failures": failures, "convention": CONVENTION, "environment": environment()}


def _row(name: str, size: int | tuple[int, int], allow: Collection[str], depth: int) -> dict:
    cost = count(create(name, size), size, allow)
    formula = None if cost.formula is None else cost.formula.macs
    modules = [module._asdict() for module in cost.modules if _level(module.name) <= depth]
    return {
        "model": name,
        "size": [size, size] if isinstance(size, int) else list(size),
        **cost._asdict(),
        "formula": formula,
        "modules": modules,
    }


def render(report: dict, depth: int = 0) -> str:
    """The table as text; with `depth`, every module down to it."""
    lines = [
        f"GMACs: {report['convention']}",
        "chunkwise: scans counted in chunks, not by recurrence; torch: products, by FlopCounterMode; hand: by formula",
        "",
        f"{'model':28} {'size':>9} {'params':>8} {'GMACs':>9} {'mixer':>9} {'channel':>9} {'rest':>8} {'activ.':>9}"
        f" {'chunkwise':>9} {'products':>9} {'torch':>9} {'hand':>9}",
    ]
    for row in report["rows"]:
        columns = ("macs", "mixer", "channel_mixer")
        lines.append(
            f"{row['model']:28} {_sides(row):>9} {row['parameters'] / 1e6:6.2f} M"
            + "".join(f" {row[column] / 1e9:9.3f}" if row[column] is not None else f" {'-':>9}" for column in columns)
            + f" {row['rest'] / 1e9:8.3f} {row['activations'] / 1e6:7.1f} M {row['chunkwise'] / 1e9:9.3f}"
            + f" {row['products'] / 1e9:9.3f} {row['torch'] / 1e9:9.3f}"
            + (f" {row['formula'] / 1e9:9.3f}" if row["formula"] is not None else "")
        )
        lines += _disagreements(row)
    for failure in report["failures"]:
        lines.append(f"{failure['model']:28} {failure['size']:>9} not counted: {failure['reason']}")
    for row in report["rows"] if depth else ():
        lines += ["", f"{row['model']}, {_sides(row)} pixels"]
        for module in row["modules"]:
            level = _level(module["name"])
            if level <= depth:
                label = "  " * level + (module["name"].rpartition(".")[2] or "model")
                lines.append(
                    f"{label:30} {module['type']:22} {module['parameters'] / 1e3:10.1f} k {module['macs'] / 1e9:9.3f} G"
                    f" {module['macs'] / max(row['macs'], 1):6.1%} {module['activations'] / 1e6:9.2f} M"
                )
    return "\n".join(lines)


def _level(module: str) -> int:
    """How deep a module is; 0 is the model."""
    return module.count(".") + 1 if module else 0


def _disagreements(row: dict) -> list[str]:
    """Says where two counts of the same thing differ: then neither of them can be trusted."""
    found = []
    if row["torch"] != row["products"]:
        found.append(f"  torch's FlopCounterMode counts {row['torch']:,} for the products, fvcore {row['products']:,}")
    if row["formula"] not in (None, row["macs"]):
        found.append(
            f"  the formula gives {row['formula']:,}, fvcore {row['macs']:,}: this is not the plain architecture"
        )
    return found


def save(report: dict, folder: str | Path) -> dict[str, str]:
    """Writes flops.json, flops.csv and, for several sizes, flops.png; returns the path of each."""
    folder = Path(folder)
    paths = {"json": folder / "flops.json", "csv": folder / "flops.csv"}
    write_json(paths["json"], report)
    fields = ["model", "size", *(name for name in Cost._fields if name not in ("operators", "modules"))]
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "size": _sides(row)} for row in report["rows"])
    write_atomic(paths["csv"], text.getvalue().encode())
    if len({tuple(row["size"]) for row in report["rows"]}) > 1:
        from .plots import plot_macs  # matplotlib is no dependency of the library

        paths["png"] = folder / "flops.png"
        plot_macs(report["rows"], paths["png"])
    return {kind: str(path) for kind, path in paths.items()}


def _sides(row: dict) -> str:
    height, width = row["size"]
    return str(height) if height == width else f"{height}x{width}"


def _text(size: int | tuple[int, int]) -> str:
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"
