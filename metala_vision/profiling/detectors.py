"""Detectors side by side: their times are taken in turn, the memory of each in a process of its own."""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import metala_vision  # noqa: F401  (registers the models)
from metala_vision.dense import DETECTORS, detector
from metala_vision.errors import InputError

from .environment import environment, memory_limit, reset_peak, resident_memory
from .speed.isolated import Ended, stream
from .speed.steps import MODES, check_models
from .speed.timing import MIN_ROUNDS, Spread, interleaved

OBJECTS = 8  # in each training image


class DetectorCandidate(NamedTuple):
    """What is compared: arguments of `metala_vision.dense.detector`."""

    name: str  # in the rows
    kind: str
    backbone: str
    num_classes: int = 80
    backbone_arguments: dict | None = None
    options: dict | None = None


class DetectorCell(NamedTuple):
    """One comparison: a batch of images of one size."""

    height: int
    width: int
    mode: str  # "infer" or "train": forward and backward pass
    batch: int = 1


def bench_detectors(
    candidates: Sequence[DetectorCandidate],
    cells: Sequence[DetectorCell],
    threads: int | None = None,
    rounds: int = 5,
    seconds: float = 60.0,
    show: Callable[[str], None] = lambda text: None,
) -> dict:
    """Times and memory of detectors, for each cell, on the CPU.

    Args:
        candidates: detectors with different names; ratios are to the first one.
        cells: what is compared.
        threads: PyTorch's; None leaves its choice.
        rounds: the most rounds of each cell.
        seconds: for each cell and candidate; a cell ends after it, once there are three rounds.
        show: gets a line for each row.

    Returns:
        `environment` and `rows`: for each cell and candidate milliseconds (median), spread, times_faster than the
        first, peak_memory and baseline_memory in bytes, or the reason why there is nothing.

    Raises:
        InputError: an unknown model or kind, two candidates of one name, or a size or number that makes no sense.
    """
    check_models((candidate.backbone for candidate in candidates), "--backbones")
    if with_arguments := [candidate.backbone for candidate in candidates if ":" in candidate.backbone]:
        raise InputError(f"--backbones: got {with_arguments[0]!r}, expected a name alone; give arguments by --configs")
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise InputError(f"--backbones, --configs: got {names}, expected each once")
    for candidate in candidates:
        if candidate.kind not in DETECTORS:
            raise InputError(f"--kind: got {candidate.kind!r}, expected one of {DETECTORS}")
    if rounds < 1 or (threads is not None and threads < 1):
        raise InputError(f"--rounds, --threads: got {rounds} and {threads}, expected at least 1")
    for cell in cells:
        if min(cell.height, cell.width) < 64 or cell.mode not in MODES or cell.batch < 1:
            raise InputError(f"--sizes, --mode: got {cell}, expected sides of at least 64 pixels and one of {MODES}")
    threads = threads or torch.get_num_threads()
    rows = []
    for cell in cells:
        common = dict(cell=cell, threads=threads)
        memory = {candidate.name: _memory(candidate, common, seconds) for candidate in candidates}
        fine = [candidate for candidate in candidates if "reason" not in memory[candidate.name]]
        times: list[list[float]] = []
        arguments = dict(common, candidates=fine, rounds=rounds, seconds=seconds * len(fine))
        if fine:
            try:
                for message in _in_own_process(race, arguments, seconds * len(fine)):
                    times.append(message["times"])
            except Ended as ended:  # say, for want of memory for all at once; the rounds before it still count
                for candidate in fine:
                    memory[candidate.name]["reason"] = f"beside the others: {ended.reason}"
        spreads = {c.name: Spread(tuple(row[i] for row in times)) for i, c in enumerate(fine)} if times else {}
        for candidate in candidates:
            row: dict[str, Any] = {"name": candidate.name, "kind": candidate.kind, "backbone": candidate.backbone}
            row |= {**cell._asdict(), **memory[candidate.name]}
            if candidate.name in spreads:
                spread = spreads[candidate.name]
                row |= {"milliseconds": round(1e3 * spread.median, 1), "rounds": len(times)}
                row |= {"spread": round(spread.relative_range, 3)}
                if names[0] in spreads:
                    row["times_faster"] = round(spreads[names[0]].ratio_to(spread), 3)
            rows.append(row)
            show(_line(row))
    return {"environment": environment("cpu", threads), "rows": rows}


def probe(send: Callable[[dict], None], candidate: DetectorCandidate, cell: DetectorCell, threads: int) -> None:
    """Sends the `peak_memory` of two steps, and the `baseline_memory` before the model was made."""
    torch.set_num_threads(threads)
    baseline, _ = resident_memory()
    model, run = _step(candidate, cell)
    reset_peak()
    for _ in range(2):
        run()
        send({"alive": True})
    send({"peak_memory": resident_memory()[1], "baseline_memory": baseline})


def race(
    send: Callable[[dict], None],
    candidates: list[DetectorCandidate],
    cell: DetectorCell,
    threads: int,
    rounds: int,
    seconds: float,
) -> None:
    """After a round that warms up, sends the `times` of each round, in which every detector runs once."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    for times in interleaved({candidate.name: _step(candidate, cell)[1] for candidate in candidates}, rounds):
        done = len(times[candidates[0].name].seconds)
        if done == 0:  # it was the round that warms up
            start = time.perf_counter()
            continue
        send({"times": [spread.seconds[-1] for spread in times.values()]})
        if done >= MIN_ROUNDS and time.perf_counter() - start > seconds:
            break


def render(report: dict) -> str:
    """The rows as a table to read."""
    table = Table(box=None)
    for column in ("detector", "image", "mode"):
        table.add_column(column, overflow="fold")
    for column in ("ms", "spread", "times faster", "MB"):
        table.add_column(column, justify="right")
    for row in report["rows"]:
        image = f"{row['width']}x{row['height']}" + (f", {row['batch']} of them" if row["batch"] > 1 else "")
        if "milliseconds" in row:
            faster = f"{row['times_faster']:.2f}" if "times_faster" in row else ""
            cells = [f"{row['milliseconds']:.0f}", f"{row['spread']:.0%}", faster]
        else:
            cells = ["", "", ""]
        memory = f"{row['peak_memory'] / 1e6:.0f}" if "peak_memory" in row else ""
        memory = f"{memory} {row.get('reason', '')}".strip()
        table.add_row(row["name"], image, row["mode"], *cells, memory)
    text = io.StringIO()
    Console(file=text, width=140).print(table)
    return text.getvalue().rstrip()


def _line(row: dict) -> str:
    took = f"{row['milliseconds']:.0f} ms" if "milliseconds" in row else row.get("reason", "not timed")
    memory = f", {row['peak_memory'] / 1e6:.0f} MB" if "peak_memory" in row else ""
    return f"{row['name']} {row['width']}x{row['height']} {row['mode']}: {took}{memory}"


def _memory(candidate: DetectorCandidate, common: dict, seconds: float) -> dict:
    try:
        found: dict = {}
        for message in _in_own_process(probe, dict(common, candidate=candidate), seconds):
            found |= message
    except Ended as ended:
        return {"reason": ended.reason}
    return {key: found[key] for key in ("peak_memory", "baseline_memory")}


def _in_own_process(function: Callable, arguments: dict, seconds: float) -> Iterator[dict]:
    yield from stream(function, arguments, 60 + 10 * seconds, memory_limit())


def _step(candidate: DetectorCandidate, cell: DetectorCell) -> tuple[torch.nn.Module, Callable[[], None]]:
    """A detector that leaves images at their size, and a function that runs one step of it."""
    torch.manual_seed(0)
    short, long = sorted((cell.height, cell.width))
    kind, backbone, num_classes = candidate.kind, candidate.backbone, candidate.num_classes
    options = {**(candidate.options or {}), "min_size": short, "max_size": long}
    model = detector(kind, backbone, num_classes, backbone_arguments=candidate.backbone_arguments, **options)
    model.train(cell.mode == "train")
    images = [torch.rand(3, cell.height, cell.width) for _ in range(cell.batch)]
    corners = torch.rand(OBJECTS, 2) * torch.tensor([0.6 * cell.width, 0.6 * cell.height])
    boxes = torch.cat([corners, corners + torch.tensor([0.3 * cell.width, 0.3 * cell.height])], 1)
    target = dict(boxes=boxes, labels=torch.arange(OBJECTS) % num_classes + 1)
    if kind == "mask_rcnn":
        target["masks"] = torch.ones(OBJECTS, cell.height, cell.width, dtype=torch.uint8)

    def infer() -> None:
        with torch.inference_mode():
            model(images)

    def train() -> None:
        model.zero_grad()
        sum(model(images, [dict(target) for _ in images]).values()).backward()

    return model, train if cell.mode == "train" else infer
