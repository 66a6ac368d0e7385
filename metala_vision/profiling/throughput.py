"""Throughput of whole models, measured and written: the function behind tools/throughput.py, and for notebooks."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import metala_vision  # noqa: F401  (registers the models)
from metala_vision.errors import InputError
from metala_vision.files import write_json

from . import sweep_report
from .environment import environment
from .steps import DTYPES, MODES, check_models, has_fused_attention
from .sweep import Limits, Plan, Store, run
from .workers import Candidate, Setting


class Request(NamedTuple):
    """What to measure. Times in seconds or minutes as named, sides in pixels."""

    models: list[str]
    resolutions: list[int]
    modes: list[str] = ["infer"]  # and "train"
    dtypes: list[str] = ["float32"]  # "bfloat16", "float16" by autocast
    batch: str | int = "auto"
    sdpa: list[str] = ["fused"]  # and "math", of models that call fused softmax attention
    baseline: str | None = None  # the last model
    compiled: bool = False
    device: str = "auto"
    threads: int | None = None
    rounds: int = 10
    cell_seconds: float = 60.0
    minutes: float | None = None


def measure(
    request: Request,
    folder: str | Path,
    retry_failed: bool = False,
    show: Callable[[str], None] = lambda text: None,
) -> dict:
    """Measures what the folder does not have yet, and writes cells.json, throughput.json, throughput.csv and plots.

    Args:
        folder: where figures are kept; a cell measured there is not measured again.
        retry_failed: try cells again that failed or had too little memory.
        show: gets the table as text at the end.

    Returns:
        `rows` (see `sweep_report.derive`), `exponents`, `environment`, `baseline`, `complete` and `files`.

    Raises:
        InputError: an unknown model, a request that makes no sense, a folder of another environment. Nothing is
            measured then.
    """
    plan, baseline = _plan(request)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    store = Store(folder, environment(plan.setting.device))
    if retry_failed:
        store.forget_failures()
    keys = plan.keys()
    complete = False
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} cells"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task("measuring", total=len(keys), completed=sum(key in store.cells for key in keys))

        def report(key: str, row: dict) -> None:
            state = sweep_report.brief(row)
            progress.console.print(f"{time.strftime('%H:%M:%S')} {key}: {state}", highlight=False)
            progress.advance(task)

        limits = Limits(request.rounds, request.cell_seconds, request.minutes)
        complete = run(plan, store, limits, report, Candidate(baseline))
    order = {key: number for number, key in enumerate(keys)}
    kept = sorted((key for key in store.cells if key in order), key=order.get)
    rows = sweep_report.derive([store.cells[key] for key in kept], baseline)
    rows.sort(key=lambda row: (request.modes.index(row["mode"]), request.dtypes.index(row["dtype"]), row["size"]))
    result = {
        "rows": rows,
        "exponents": sweep_report.exponents(rows),
        "environment": store.content["environment"],
        "baseline": baseline,
        "complete": complete,
    }
    write_json(Path(folder) / "throughput.json", result)
    result["files"] = sweep_report.save(rows, folder, baseline)
    show(sweep_report.render(rows, store.content["environment"], baseline))
    if not complete:
        show(f"{len(keys) - len(kept)} cells of {len(keys)} are not measured yet: the same command goes on")
    show(f"written: {Path(folder) / 'throughput.json'}, {', '.join(result['files'].values())}")
    return result


def _plan(request: Request) -> tuple[Plan, str]:
    check_models(request.models)
    baseline = request.baseline or request.models[-1]
    if baseline not in request.models:
        raise InputError(f"--baseline: {baseline!r} is not one of --models {' '.join(request.models)}")
    for name, values, known in (("--mode", request.modes, MODES), ("--dtype", request.dtypes, DTYPES)):
        if not values or not set(values) <= set(known):
            raise InputError(f"{name}: got {values}, expected out of {known}")
    if not request.resolutions or min(request.resolutions) < 32:
        raise InputError(f"--resolutions: got {request.resolutions}, expected sides of at least 32 pixels")
    batch = str(request.batch)
    if batch != "auto" and not (batch.isdecimal() and int(batch) > 0):
        raise InputError(f"--batch: got {batch!r}, expected auto or a number of images")
    if request.rounds < 1 or request.cell_seconds <= 0:
        raise InputError("--rounds and --cell-seconds: expected more than zero")
    device = request.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    smallest = min(request.resolutions)
    candidates = []
    for model in dict.fromkeys(request.models):
        candidates += [Candidate(model)] if "fused" in request.sdpa or not has_fused_attention(model, smallest) else []
        if "math" in request.sdpa and has_fused_attention(model, smallest):
            candidates.append(Candidate(model, "math"))
    setting = Setting(device, request.threads, request.compiled)
    sizes = list(dict.fromkeys(request.resolutions))
    plan = Plan(candidates, sizes, request.modes, request.dtypes, None if batch == "auto" else int(batch), setting)
    return plan, baseline
