"""Whole models side by side in several runtimes, each at its best: what tools/bench_model.py calls with --runtime."""

import contextlib
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

import metala_vision  # noqa: F401  (registers the models)

from .bench import row_of
from .files import Files
from .in_turn import Entry, race
from .runtimes import check_runtimes
from .steps import Cell, check_models
from .timing import Spread
from .workers import Candidate, Setting

PATIENCE = 1800.0  # seconds for a file to be written, a model to be compiled, or a turn


def bench_runtimes(
    names: list[str],
    cells: list[Cell],
    runtimes: Sequence[str],
    threads: int | None = None,
    rounds: int = 15,
    seconds: float = 60.0,
    floor: bool = True,
    files: str | Path | None = None,
) -> tuple[list[dict], list[dict]]:
    """One row for each cell, model and runtime, as those of `bench_models`, and the best runtime of each model.

    Args:
        names: of timm's models, with arguments if they have any.
        cells: of inference, or of training with runtimes that train.
        runtimes: out of `runtimes.RUNTIMES`, each in a process of its own.
        threads: of each; None is PyTorch's number.
        rounds: at most, of a cell.
        seconds: of a cell, once it has three rounds.
        floor: the matrix products of each model as well, where "eager" is among the runtimes.
        files: folder where exported files are kept and looked for; None is a temporary one.

    Returns:
        The rows; `times_faster` is against the first model in eager, or in the first runtime if eager is not among
        them, and a row without figures has a `reason`. And for each cell `models`, the best runtime of each with its
        milliseconds, and `over`, the time of the first model's best over that of another model's best.

    Raises:
        InputError: an unknown model or runtime, one that is not installed or does not train.
    """
    names = list(dict.fromkeys(names))
    runtimes = check_runtimes(runtimes, {cell.mode for cell in cells}, "cpu")
    check_models(names)
    candidates = [Candidate(name, runtime=runtime) for name in names for runtime in runtimes]
    baseline = Candidate(names[0], runtime="eager" if "eager" in runtimes else runtimes[0])
    rows, best = [], []
    with contextlib.ExitStack() as stack:
        folder = files or stack.enter_context(tempfile.TemporaryDirectory(prefix="exported_"))
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        setting = Setting("cpu", threads or torch.get_num_threads(), files=str(folder))
        exported = Files(folder, PATIENCE)
        for cell in cells:
            task = progress.add_task("", total=rounds)
            tell = partial(_tell, progress, task, f"{cell.size}x{cell.batch} {cell.dtype} {cell.mode}")
            reasons = {}
            for candidate in candidates:
                tell(f"file of {candidate.model} for {candidate.runtime}")
                if reason := exported.reason_against(candidate, cell):
                    reasons[candidate] = reason
            entries = [Entry(c, cell, floor and c.runtime == "eager") for c in candidates if c not in reasons]
            times = []
            for message in race(entries, setting, rounds, seconds, PATIENCE, tell):
                if "failed" in message:
                    reasons[entries[message["failed"]].candidate] = message["reason"]
                else:
                    times.append(message["times"])
                    progress.advance(task)
            progress.remove_task(task)
            spreads = _spreads(entries, times, reasons)
            rows += [_row(candidate, cell, spreads, reasons, baseline) for candidate in candidates]
            best.append(_best(names, candidates, cell, spreads))
    return rows, best


def _tell(progress: Progress, task: TaskID, title: str, text: str) -> None:
    progress.update(task, description=f"{title}: {text}" if text else title)


def _key(candidate: Candidate) -> str:
    return f"{candidate.model} in {candidate.runtime}"


def _spreads(entries: Sequence[Entry], times: Sequence[list], reasons: dict[Candidate, str]) -> dict[str, Spread]:
    """The seconds of those that ran to the end, and the floors of each under the names that `row_of` looks for."""
    spreads = {}
    for index, entry in enumerate(entries):
        if entry.candidate in reasons:
            continue
        mine = {name: Spread(tuple(row[index][name] for row in times)) for name in times[0][index]}
        spreads[_key(entry.candidate)] = mine.pop("step")
        for name, spread in mine.items():  # a floor is the model's, whatever runs it
            for other in entries:
                if other.candidate.model == entry.candidate.model:
                    spreads[f"{name} of {_key(other.candidate)}"] = spread
    return spreads


def _row(
    candidate: Candidate, cell: Cell, spreads: dict[str, Spread], reasons: dict[Candidate, str], baseline: Candidate
) -> dict:
    named = {"model": candidate.model, "runtime": candidate.runtime}
    if candidate in reasons:
        return named | cell._asdict() | {"reason": reasons[candidate]}
    first = _key(baseline if _key(baseline) in spreads else candidate)
    row = named | row_of(_key(candidate), cell, spreads, first) | {"model": candidate.model}
    return row if first == _key(baseline) else row | {"times_faster": None}


def _best(names: Sequence[str], candidates: Sequence[Candidate], cell: Cell, spreads: dict[str, Spread]) -> dict:
    """The fastest runtime of each model that ran, and the first one's time over the others' in the same rounds."""
    fastest: dict[str, Candidate] = {}
    for name in names:
        ran = [c for c in candidates if c.model == name and _key(c) in spreads]
        if ran:
            fastest[name] = min(ran, key=lambda candidate: spreads[_key(candidate)].median)
    models = {
        name: {"runtime": c.runtime, "milliseconds": 1e3 * spreads[_key(c)].median} for name, c in fastest.items()
    }
    over = {}
    if names[0] in fastest:
        mine = spreads[_key(fastest[names[0]])]
        over = {name: mine.ratio_to(spreads[_key(c)]) for name, c in fastest.items() if name != names[0]}
    return {**cell._asdict(), "models": models, "over": over}


def render_best(best: Sequence[dict]) -> str:
    """A line for each cell."""
    lines = []
    for cell in best:
        found = [f"best of {name}: {x['milliseconds']:.1f} ms ({x['runtime']})" for name, x in cell["models"].items()]
        first = next(iter(cell["models"]), "")
        found += [f"{first} over {name}: {ratio:.2f}" for name, ratio in cell["over"].items()]
        lines.append(f"{cell['size']}x{cell['batch']} {cell['dtype']} {cell['mode']}: {'; '.join(found) or 'none ran'}")
    return "\n".join(lines)
