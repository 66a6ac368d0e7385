"""Throughput of whole models, measured and written: the function behind tools/throughput.py, and for notebooks."""

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TimeElapsedColumn, TimeRemainingColumn

import metala_vision  # noqa: F401  (registers the models)
from metala_vision.errors import InputError
from metala_vision.profiling.environment import can_draw, environment
from metala_vision.profiling.speed.attention import SDPA
from metala_vision.profiling.speed.isolated import Ended, stream
from metala_vision.profiling.speed.runtimes import OF_FILES, check_runtimes
from metala_vision.profiling.speed.steps import DTYPES, MODES, check_models
from metala_vision.profiling.speed.timing import timed_device
from metala_vision.profiling.speed.workers import Candidate, Setting, find_softmax

from .repeat import agreement, describe
from .report import render, save
from .rows import brief, derive, exponents, in_order
from .store import Store
from .sweep import Limits, Plan, run


class Request(NamedTuple):
    """What to measure. Times in seconds or minutes as named, sides in pixels."""

    models: list[str]
    resolutions: list[int]
    modes: list[str] = ["infer"]  # and "train"
    dtypes: list[str] = ["float32"]  # "bfloat16", "float16" by autocast
    batch: str | int = "auto"
    sdpa: list[str] = ["default"]  # or other names in `attention.SDPA`, for models that call softmax attention
    # None is the last model. The baseline runs "default" attention in "eager" if that is measured, else the first of
    # `sdpa` and `runtimes`.
    baseline: str | None = None
    compiled: bool = False
    device: str = "auto"
    threads: int | None = None  # PyTorch's
    rounds: int = 10
    cell_seconds: float = 60.0
    minutes: float | None = None
    runtimes: list[str] = ["eager"]  # or others in `runtimes.RUNTIMES`, on a CPU
    files: str | None = None  # folder where exported files are kept and looked for; None is a temporary one


def measure(
    request: Request,
    folder: str | Path,
    retry_failed: bool = False,
    against: str | Path | None = None,
    show: Callable[[str], None] = lambda text: None,
) -> dict:
    """Measures what the folder does not have yet, and writes cells.json, throughput.json, throughput.csv and plots.

    The last three hold all that the folder has with this batch and this `compiled`.

    Args:
        folder: where figures are kept; a cell measured there is not measured again.
        retry_failed: try the cells again that failed or had too little memory.
        against: folder of another sweep, whose medians are compared with these, see `repeat.agreement`.
        show: gets the table as text at the end.

    Returns:
        `rows` (see `derive`) of what was asked for, `exponents`, `environment`, `baseline`, `complete` and
        `files`; `against` where that was asked for.

    Raises:
        InputError: an unknown model, a request that makes no sense, a folder of another environment. Nothing is
            measured then.
    """
    if not can_draw():
        show("no pictures are drawn: matplotlib is not installed (pip install matplotlib)")
    if against is not None:
        agreement([], against)  # raises if there is no sweep
    _check(request)
    with contextlib.ExitStack() as stack:
        files = request.files or stack.enter_context(tempfile.TemporaryDirectory(prefix="exported_"))
        setting = _setting(request)._replace(files=files)
        store = stack.enter_context(Store(folder, environment(setting.device, setting.threads)))
        plan = _plan(request, setting)
        baseline = _baseline(request, plan)
        complete = _fill(plan, store, request, baseline, retry_failed)
        same = {key: row for key, row in store.cells.items() if row["series"] == plan.series}
        everything = in_order(derive(same, store.races, baseline))
        keys = plan.keys()
        rows = derive({key: same[key] for key in keys if key in same}, store.races, baseline, same)
        result: dict[str, Any] = {
            "rows": in_order(rows),
            "exponents": exponents(rows),
            "environment": store.environment,
            "baseline": baseline._asdict(),
            "complete": complete,
        }
        result["files"] = save(everything, store.environment, folder, baseline, can_draw())
    show(render(result["rows"], store.environment, baseline))
    if not complete:
        show(f"the time is over, and {len(rows)} of {len(keys)} cells have a row: the same command goes on")
    if against is not None:
        result["against"] = agreement(result["rows"], against)
        show(describe(result["against"], against))
    show(f"written: {', '.join(result['files'].values())}")
    return result


def _baseline(request: Request, plan: Plan) -> Candidate:
    mine = [c for c in plan.candidates if c.model == (request.baseline or request.models[-1])]
    return next((c for c in mine if (c.sdpa, c.runtime) == ("default", "eager")), mine[0])


def _fill(plan: Plan, store: Store, request: Request, baseline: Candidate, retry_failed: bool) -> bool:
    """Measures what the store lacks of a plan, and shows how far it is."""
    keys = plan.keys()
    if retry_failed:
        store.forget_failures(keys)
    columns: list[str | ProgressColumn] = ["{task.description}", BarColumn(), "{task.completed}/{task.total} cells"]
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("measuring", total=len(keys), completed=sum(key in store.cells for key in keys))

        def report(key: str, row: dict) -> None:
            progress.console.print(f"{time.strftime('%H:%M:%S')} {key}: {brief(row)}", highlight=False)
            progress.advance(task)

        return run(plan, store, Limits(request.rounds, request.cell_seconds, request.minutes), report, baseline)


def _check(request: Request) -> None:
    """Raises InputError for a request that makes no sense."""
    if not request.models:
        raise InputError("--models: got none, expected names of timm models")
    check_models(request.models)
    known = {"--mode": (request.modes, MODES), "--dtype": (request.dtypes, DTYPES), "--sdpa": (request.sdpa, SDPA)}
    for name, (values, expected) in known.items():
        if not values or not set(values) <= set(expected):
            raise InputError(f"{name}: got {' '.join(values) or 'none'}, expected out of {', '.join(expected)}")
    if request.baseline is not None and request.baseline not in request.models:
        raise InputError(f"--baseline: {request.baseline!r} is not one of --models {' '.join(request.models)}")
    if not request.resolutions or min(request.resolutions) < 32:
        raise InputError(f"--resolutions: got {request.resolutions}, expected sides of at least 32 pixels")
    batch = str(request.batch)
    if batch != "auto" and not (batch.isdecimal() and int(batch) > 0):
        raise InputError(f"--batch: got {batch!r}, expected auto or a number of images")
    if request.threads is not None and request.threads < 1:
        raise InputError(f"--threads: got {request.threads}, expected at least 1")
    if request.rounds < 1:
        raise InputError(f"--rounds: got {request.rounds}, expected at least 1")
    if not 0 < request.cell_seconds < float("inf"):
        raise InputError(f"--cell-seconds: got {request.cell_seconds}, expected more than 0")
    if request.minutes is not None and not request.minutes >= 0:
        raise InputError(f"--minutes: got {request.minutes}, expected at least 0")
    check_runtimes(request.runtimes, request.modes, timed_device(request.device), request.compiled)


def _setting(request: Request) -> Setting:
    return Setting(timed_device(request.device), request.threads or torch.get_num_threads(), request.compiled)


def _plan(request: Request, setting: Setting) -> Plan:
    candidates = []
    for model in dict.fromkeys(request.models):
        asked = list(dict.fromkeys(request.sdpa))
        chosen = asked if asked == ["default"] or _calls_softmax(model, request.resolutions) else ["default"]
        for runtime in dict.fromkeys(request.runtimes):
            # What an exported file computes its attention with is not for PyTorch to choose.
            candidates += [Candidate(model, s, runtime) for s in (["default"] if runtime in OF_FILES else chosen)]
    batch = None if request.batch == "auto" else int(request.batch)
    sizes = list(dict.fromkeys(request.resolutions))
    modes, dtypes = (list(dict.fromkeys(names)) for names in (request.modes, request.dtypes))
    return Plan(candidates, sizes, modes, dtypes, batch, setting)


def _calls_softmax(model: str, sizes: list[int]) -> bool:
    """Whether it calls softmax attention, at the smallest size that runs; False if none does: its cells say why."""
    for size in sorted(sizes):
        arguments = {"model": model, "size": size}
        with (
            contextlib.suppress(Ended),
            contextlib.closing(stream(find_softmax, arguments, 300, None)) as messages,
        ):
            return next(messages)["found"]
    return False
