"""A detector on several backbones, side by side: time in turn, and memory in a process of its own for each."""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import metala_vision  # noqa: F401  (registers the models)
from metala_vision.dense import DETECTORS, detector
from metala_vision.errors import InputError

from .environment import available_memory, environment, reset_peak, resident_memory
from .isolated import Ended, stream
from .steps import MODES, check_models
from .timing import MIN_ROUNDS, Spread

OBJECTS = 8  # in an image that is trained on


class DetectorCell(NamedTuple):
    """One comparison: a batch of images of one size."""

    height: int
    width: int
    mode: str  # "infer" or "train": forward and backward pass
    batch: int = 1


def bench_detectors(
    kind: str,
    backbones: Sequence[str],
    cells: Sequence[DetectorCell],
    threads: int | None = None,
    rounds: int = 5,
    seconds: float = 60.0,
    show: Callable[[str], None] = lambda text: None,
) -> dict:
    """Times and memory of a detector on each backbone, for each cell, on the CPU.

    Args:
        kind: see `metala_vision.dense.detector`.
        backbones: names of timm models; ratios are to the first one.
        cells: what is compared.
        threads: PyTorch's; None leaves its choice.
        rounds: at most, of each cell.
        seconds: of each cell and backbone, once there are three rounds.
        show: gets a line as each part is done.

    Returns:
        `environment` and `rows`: for each cell and backbone milliseconds (median), spread, times_faster than the first
        backbone, peak_memory and baseline_memory in bytes, or the reason why there is nothing.

    Raises:
        InputError: an unknown model or kind, or a size or number that makes no sense.
    """
    check_models(backbones)
    if kind not in DETECTORS:
        raise InputError(f"--kind: got {kind!r}, expected one of {DETECTORS}")
    if rounds < 1 or (threads is not None and threads < 1):
        raise InputError(f"--rounds, --threads: got {rounds} and {threads}, expected at least 1")
    for cell in cells:
        if min(cell.height, cell.width) < 64 or cell.mode not in MODES or cell.batch < 1:
            raise InputError(f"--sizes, --mode: got {cell}, expected sides of at least 64 pixels and one of {MODES}")
    threads = threads or torch.get_num_threads()
    rows = []
    for cell in cells:
        common = dict(kind=kind, cell=cell, threads=threads)
        memory = {name: _memory(name, common, seconds) for name in backbones}
        fine = [name for name in backbones if "reason" not in memory[name]]
        times: list[list[float]] = []
        arguments = dict(common, backbones=fine, rounds=rounds, seconds=seconds * len(fine))
        if fine:
            try:
                times += [message["times"] for message in _in_own_process(race, arguments, seconds * len(fine))]
            except Ended as ended:
                show(f"{cell.height}x{cell.width} {cell.mode}: {ended.reason}")
        spreads = {name: Spread(tuple(row[i] for row in times)) for i, name in enumerate(fine)} if times else {}
        for name in backbones:
            row = {"kind": kind, "backbone": name, **cell._asdict(), **memory[name]}
            if name in spreads:
                row |= {"milliseconds": round(1e3 * spreads[name].median, 1), "rounds": len(times)}
                row |= {"spread": round(spreads[name].relative_range, 3)}
                if backbones[0] in spreads:
                    row["times_faster"] = round(spreads[backbones[0]].ratio_to(spreads[name]), 3)
            rows.append(row)
            show(_line(row))
    return {"environment": environment("cpu", threads), "rows": rows}


def probe(send: Callable[[dict], None], kind: str, backbone: str, cell: DetectorCell, threads: int) -> None:
    """Sends the `peak_memory` of two steps, and the `baseline_memory` before the model was made."""
    torch.set_num_threads(threads)
    baseline, _ = resident_memory()
    model, run = _step(kind, backbone, cell)
    reset_peak()
    for _ in range(2):
        run()
        send({"alive": True})
    send({"peak_memory": resident_memory()[1], "baseline_memory": baseline})


def race(
    send: Callable[[dict], None],
    kind: str,
    backbones: list[str],
    cell: DetectorCell,
    threads: int,
    rounds: int,
    seconds: float,
) -> None:
    """Sends the `times` of each round, in which every detector has its turn, after one that warms up."""
    torch.set_num_threads(threads)
    runs = [_step(kind, backbone, cell)[1] for backbone in backbones]
    for run in runs:
        run()
    start = time.perf_counter()
    for number in range(rounds):
        times = []
        for run in runs:
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        send({"times": times})
        if number + 1 >= MIN_ROUNDS and time.perf_counter() - start > seconds:
            break


def render(report: dict) -> str:
    """The rows as a table to read."""
    table = Table(box=None)
    for column in ("backbone", "image", "mode"):
        table.add_column(column, overflow="fold")
    for column in ("ms", "spread", "times faster", "MB"):
        table.add_column(column, justify="right")
    for row in report["rows"]:
        image = f"{row['width']}x{row['height']}" + (f", {row['batch']} of them" if row["batch"] > 1 else "")
        if "milliseconds" in row:
            cells = [f"{row['milliseconds']:.0f}", f"{row['spread']:.0%}", f"{row.get('times_faster', 0):.2f}"]
        else:
            cells = ["", "", ""]
        memory = f"{row['peak_memory'] / 1e6:.0f}" if "peak_memory" in row else row["reason"]
        table.add_row(row["backbone"], image, row["mode"], *cells, memory)
    console = Console(file=io.StringIO(), width=140)
    console.print(table)
    return console.file.getvalue().rstrip()


def _line(row: dict) -> str:
    took = f"{row['milliseconds']:.0f} ms" if "milliseconds" in row else row.get("reason", "not timed")
    memory = f", {row['peak_memory'] / 1e6:.0f} MB" if "peak_memory" in row else ""
    return f"{row['backbone']} {row['width']}x{row['height']} {row['mode']}: {took}{memory}"


def _memory(backbone: str, common: dict, seconds: float) -> dict:
    try:
        found: dict = {}
        for message in _in_own_process(probe, dict(common, backbone=backbone), seconds):
            found |= message
    except Ended as ended:
        return {"reason": ended.reason}
    return {key: found[key] for key in ("peak_memory", "baseline_memory")}


def _in_own_process(function: Callable, arguments: dict, seconds: float) -> Iterator[dict]:
    available = available_memory()
    limit = None if available is None else int(0.9 * available)
    yield from stream(function, arguments, 60 + 10 * seconds, limit)


def _step(kind: str, backbone: str, cell: DetectorCell) -> tuple[torch.nn.Module, Callable[[], None]]:
    """A detector whose images keep their size, and one step of it."""
    torch.manual_seed(0)
    short, long = sorted((cell.height, cell.width))
    model = detector(kind, backbone, 80, min_size=short, max_size=long).train(cell.mode == "train")
    images = [torch.rand(3, cell.height, cell.width) for _ in range(cell.batch)]
    corners = torch.rand(OBJECTS, 2) * torch.tensor([0.6 * cell.width, 0.6 * cell.height])
    boxes = torch.cat([corners, corners + torch.tensor([0.3 * cell.width, 0.3 * cell.height])], 1)
    target = dict(boxes=boxes, labels=torch.arange(OBJECTS) + 1)
    if kind == "mask_rcnn":
        target["masks"] = torch.ones(OBJECTS, cell.height, cell.width, dtype=torch.uint8)

    def infer() -> None:
        with torch.inference_mode():
            model(images)

    def train() -> None:
        model.zero_grad()
        sum(model(images, [dict(target) for _ in images]).values()).backward()

    return model, train if cell.mode == "train" else infer
