"""Whole models side by side: what tools/bench_model.py calls."""

import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import timm
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.nn import functional as F

from metala_vision.errors import InputError, near_matches

from .products import matrix_products, replay
from .timing import Spread, interleaved

MIN_ROUNDS = 3


class Cell(NamedTuple):
    """One comparison: square images of `size` pixels."""

    size: int
    batch: int
    dtype: str  # "float32", or "bfloat16" by autocast
    mode: str  # "infer" or "train"


def parse_cell(text: str) -> tuple[int, int]:
    """ "512" -> (512, 1), "224x8" -> (224, 8). InputError for anything else."""
    size, _, batch = text.partition("x")
    if not size.isdecimal() or not (batch.isdecimal() or text == size) or int(size) < 1 or int(batch or 1) < 1:
        raise InputError(f"--cells: got {text!r}, expected a size or SIZExBATCH, such as 512 or 224x8")
    return int(size), int(batch or 1)


def create(name: str, size: int) -> nn.Module:
    """A timm model for images of `size`; softmax ViTs get their position embedding resized to it."""
    if not timm.is_model(name):
        raise InputError(f"--models: unknown model {name!r}{near_matches(name, timm.list_models())}")
    try:
        return timm.create_model(name, img_size=size)
    except TypeError:  # a convolutional model: it has no nominal size
        return timm.create_model(name)


def make_step(model: nn.Module, cell: Cell, no_gradients: type = torch.inference_mode) -> Callable[[], object]:
    """One forward pass under `no_gradients`, or one training step with AdamW, of a cell."""
    x = torch.randn(cell.batch, 3, cell.size, cell.size)
    autocast = torch.autocast("cpu", torch.bfloat16) if cell.dtype == "bfloat16" else nullcontext()
    if cell.mode == "infer":

        def infer() -> None:
            with no_gradients(), autocast:
                model(x)

        return infer
    target = torch.zeros(cell.batch, dtype=torch.long)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def train() -> None:
        with autocast:
            loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def bench_models(
    names: list[str],
    cells: list[Cell],
    compiled: bool = False,
    threads: int | None = None,
    rounds: int = 15,
    seconds: float = 60.0,
    floor: bool = True,
) -> list[dict]:
    """One row for each model and cell: medians in milliseconds, ratio to the first model, shares of the floors.

    A cell stops after `rounds`, or once `seconds` are over and it has three rounds.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(cells) * (rounds + 1))
        for number, cell in enumerate(cells):
            progress.update(task, description=f"{cell.size}x{cell.batch} {cell.dtype}", completed=number * (rounds + 1))
            candidates = {}
            for name in names:
                model = create(name, cell.size).train(cell.mode == "train")
                step = make_step(model, cell)
                if floor:
                    products = matrix_products(make_step(model, cell, torch.no_grad))
                    candidates[f"floor of {name}"] = replay(products)
                    if any(product.onednn for product in products):
                        products = [product._replace(onednn=False) for product in products]
                        candidates[f"torch floor of {name}"] = replay(products)
                candidates[name] = make_step(torch.compile(model), cell) if compiled else step
            spreads = _measure(candidates, rounds, seconds, lambda: progress.advance(task))
            rows += [_row(name, cell, spreads, names[0]) for name in names]
    return rows


def _measure(
    candidates: dict[str, Callable[[], object]], rounds: int, seconds: float, advance: Callable[[], None]
) -> dict[str, Spread]:
    start = time.perf_counter()
    spreads: dict[str, Spread] = {}
    for spreads in interleaved(candidates, rounds):
        advance()
        done = min(len(spread.seconds) for spread in spreads.values())
        if done >= MIN_ROUNDS and time.perf_counter() - start > seconds:
            break
    return spreads


def _row(name: str, cell: Cell, spreads: dict[str, Spread], first: str) -> dict:
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


def environment() -> dict:
    """What the figures hold for."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def render(report: dict) -> str:
    """The table as text."""
    first = report["rows"][0]["model"]
    lines = [", ".join(f"{key} {value}" for key, value in report["environment"].items())]
    titles = f"{'cell':>10} {'dtype':>9} {'mode':>6}  {'model':28} {'ms':>9} {'spread':>7}"
    lines.append(f"{titles} {'x ' + first:>23} {'floor':>7} {'torch':>7}")
    for row in report["rows"]:
        share = f"{row['floor_share']:7.0%} {row['torch_floor_share']:7.0%}" if "floor_share" in row else ""
        lines.append(
            f"{row['size']:>6}x{row['batch']:<3} {row['dtype']:>9} {row['mode']:>6}  {row['model']:28}"
            f" {row['milliseconds']:9.1f} {row['spread']:7.0%} {row['times_faster']:23.2f} {share}"
        )
    return "\n".join(lines)
