"""Whole models side by side: what tools/bench_model.py calls."""

import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from metala_vision.errors import InputError

from .isolated import is_out_of_memory, one_line
from .products import floors
from .steps import Cell, compiled, create, make_step
from .timing import MIN_ROUNDS, Spread, interleaved


def parse_cell(text: str) -> tuple[int, int]:
    """ "512" -> (512, 1), "224x8" -> (224, 8). InputError for anything else."""
    size, _, batch = text.partition("x")
    if not size.isdecimal() or not (batch.isdecimal() or text == size) or int(size) < 1 or int(batch or 1) < 1:
        raise InputError(f"--cells: got {text!r}, expected a size or SIZExBATCH, such as 512 or 224x8")
    return int(size), int(batch or 1)


def bench_models(
    names: list[str],
    cells: list[Cell],
    compile: bool = False,
    threads: int | None = None,
    rounds: int = 15,
    seconds: float = 60.0,
    floor: bool = True,
    device: str = "cpu",
    cuda_graphs: bool = False,
) -> list[dict]:
    """One row for each model and cell: medians in milliseconds, ratio to the first model, shares of the floors.

    A cell stops after `rounds`, or once `seconds` are over and it has three rounds. With `cuda_graphs` compiled models
    are recorded as CUDA graphs. A model that does not run at a size has a row with the `reason`.

    Raises:
        InputError: CUDA graphs of models that are not compiled, or not on a GPU.
    """
    if cuda_graphs and not compile:
        raise InputError("--cuda-graphs: got it without --compile, which records them; add --compile")
    if cuda_graphs and not device.startswith("cuda"):
        raise InputError(f"--cuda-graphs: got the device {device}, expected a CUDA device; leave it out")
    if threads is not None:
        torch.set_num_threads(threads)
    # Each cell has one shape; by default torch compiles for open sizes what it has seen in another cell before.
    options: dict[str, Any] = {"dynamic": False} | ({"mode": "reduce-overhead"} if cuda_graphs else {})
    warmup = 3 if cuda_graphs else 1  # a graph is recorded in the second run
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        each = rounds + warmup
        task = progress.add_task("", total=len(cells) * each)
        for number, cell in enumerate(cells):
            progress.update(task, description=f"{cell.size}x{cell.batch} {cell.dtype}", completed=number * each)
            candidates: dict[str, Callable[[], object]] = {}
            reasons = {}
            for name in names:
                model = create(name, cell.size, device).train(cell.mode == "train")
                try:
                    alone = floors(make_step(model, cell, torch.no_grad)) if floor else {}
                    step = make_step(compiled(model, **options) if compile else model, cell)
                    step()
                except Exception as error:  # of one model at one size: what has been measured stays
                    reasons[name] = "out of memory" if is_out_of_memory(error) else one_line(error)
                    continue
                candidates |= {f"{kind} of {name}": run for kind, run in alone.items()}
                candidates[name] = step
            spreads = {}
            if candidates:
                spreads = _measure(candidates, rounds, seconds, device, warmup, lambda: progress.advance(task))
            rows += [_row(name, cell, spreads, names[0], reasons) for name in names]
    return rows


def _row(name: str, cell: Cell, spreads: dict[str, Spread], first: str, reasons: dict[str, str]) -> dict:
    if name in reasons:
        return {"model": name, **cell._asdict(), "reason": reasons[name]}
    if first in spreads:
        return row_of(name, cell, spreads, first)
    return row_of(name, cell, spreads, name) | {"times_faster": None}


def _measure(
    candidates: dict[str, Callable[[], object]],
    rounds: int,
    seconds: float,
    device: str,
    warmup: int,
    advance: Callable[[], None],
) -> dict[str, Spread]:
    start = time.perf_counter()
    spreads: dict[str, Spread] = {}
    for spreads in interleaved(candidates, rounds, warmup, device):
        advance()
        done = min(len(spread.seconds) for spread in spreads.values())
        if done == 0:  # it compiles while it warms up
            start = time.perf_counter()
        if done >= MIN_ROUNDS and time.perf_counter() - start > seconds:
            break
    return spreads


def row_of(name: str, cell: Cell, spreads: dict[str, Spread], first: str) -> dict:
    """The row of one of `spreads`, which has floors under names such as "floor of NAME", against the first one's."""
    spread = spreads[name]
    row = {
        "model": name,
        **cell._asdict(),
        "milliseconds": 1e3 * spread.median,
        "spread": spread.relative_range,
        "rounds": len(spread.seconds),
        "times_faster": spreads[first].ratio_to(spread),
        "images_per_second": cell.batch / spread.median,
    }
    if f"floor of {name}" in spreads:
        floor = spreads[f"floor of {name}"]
        row |= {"floor_milliseconds": 1e3 * floor.median, "floor_share": floor.ratio_to(spread)}
        row["torch_floor_share"] = spreads.get(f"torch floor of {name}", floor).ratio_to(spread)
    return row


def render(report: dict) -> str:
    """The table as text."""
    first = report["rows"][0]["model"]
    runtimes = "runtime" in report["rows"][0]
    lines = [", ".join(f"{key} {value}" for key, value in report["environment"].items())]
    titles = f"{'cell':>10} {'dtype':>9} {'mode':>6}  {'model':28} {'runtime     ' if runtimes else ''}"
    lines.append(f"{titles}{'ms':>9} {'spread':>7} {'x ' + first:>23} {'floor':>7} {'torch':>7}")
    for row in report["rows"]:
        named = f"{row['size']:>6}x{row['batch']:<3} {row['dtype']:>9} {row['mode']:>6}  {row['model']:28}"
        named += f" {row['runtime']:11}" if runtimes else ""
        lines.append(f"{named} {_figures(row)}")
    return "\n".join(lines)


def _figures(row: dict) -> str:
    if "reason" in row:
        return row["reason"]
    faster = "" if row["times_faster"] is None else f"{row['times_faster']:.2f}"
    share = f"{row['floor_share']:7.0%} {row['torch_floor_share']:7.0%}" if "floor_share" in row else ""
    return f"{row['milliseconds']:9.1f} {row['spread']:7.0%} {faster:>23} {share}"
