"""A sweep of whole models over resolutions, modes and dtypes, that can be interrupted anywhere and goes on."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from metala_vision.errors import InputError
from metala_vision.files import write_json

from . import workers
from .environment import available_memory
from .isolated import Ended, stream
from .steps import Cell
from .workers import Candidate, Setting

MIN_ROUNDS = 3
FILE = "cells.json"


class Limits(NamedTuple):
    """How long to measure."""

    rounds: int = 10  # at most, of a cell
    cell_seconds: float = 60.0  # of a cell, once it has three rounds; a step longer than a quarter of it is timed alone
    minutes: float | None = None  # of the whole sweep: no cell is begun after it


class Plan(NamedTuple):
    """What to measure: every candidate in every combination."""

    candidates: list[Candidate]
    sizes: list[int]
    modes: list[str]
    dtypes: list[str]
    batch: int | None  # None: `automatic_batch`
    setting: Setting

    def groups(self) -> Iterator[Cell]:
        """The cells that are compared with each other, small ones first: an early end leaves whole rows."""
        for size in sorted(self.sizes):
            batch = self.batch or automatic_batch(size, self.setting.device)
            for mode in self.modes:
                for dtype in self.dtypes:
                    yield Cell(size, batch, dtype, mode)

    def keys(self) -> list[str]:
        """Those of all its cells."""
        return [self.key(candidate, cell) for cell in self.groups() for candidate in self.candidates]

    def key(self, candidate: Candidate, cell: Cell) -> str:
        """What a cell is called in the file."""
        compiled = " compiled" if self.setting.compiled else ""
        return f"{candidate.model} {candidate.sdpa} {cell.mode} {cell.dtype} {cell.size}x{cell.batch}{compiled}"


def automatic_batch(size: int, device: str) -> int:
    """Images of about as many pixels as 8 of 224 on a CPU, or 256 on a GPU, down to one: a power of two."""
    images = (8 if device == "cpu" else 256) * (224 / size) ** 2
    return 1 << max(int(images).bit_length() - 1, 0)


class Store:
    """The cells measured so far, in a file that is whole at any moment."""

    def __init__(self, folder: str | Path, environment: dict):
        """Reads what is there.

        Raises:
            InputError: figures of another machine, or of other versions.
        """
        self.path = Path(folder) / FILE
        self.content = {"environment": environment, "cells": {}, "probes": {}}
        if self.path.is_file():
            try:
                self.content = json.loads(self.path.read_text())
                found = self.content["environment"]
                self.content["cells"], self.content["probes"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"--out: {self.path} does not hold measured cells: {error!r}") from error
            different = [key for key in environment if environment[key] != found.get(key)]
            if different:
                had = ", ".join(f"{key} {found.get(key)} (now {environment[key]})" for key in different)
                raise InputError(f"--out: {folder} holds figures of another environment: {had}; choose another folder")

    @property
    def cells(self) -> dict[str, dict]:
        """Rows by key."""
        return self.content["cells"]

    @property
    def probes(self) -> dict[str, dict]:
        """What the process of a cell's own found, by key."""
        return self.content["probes"]

    def forget_failures(self) -> None:
        """Lets cells that failed or had too little memory be tried again."""
        for rows in (self.cells, self.probes):
            for key in [key for key, row in rows.items() if row["status"] not in ("ok", "alone")]:
                del rows[key]

    def save(self) -> None:
        """Writes the file."""
        write_json(self.path, self.content)


def run(plan: Plan, store: Store, limits: Limits, report: Callable[[str, dict], None], baseline: Candidate) -> bool:
    """Measures every cell of the plan that the store does not have; `report` gets each as it is done.

    Every cell is first run alone in a process of its own, for its memory, with the batch halved while there is too
    little; then all of a group that are fast enough take turns in one process. A cell that fails is a row that says so.

    Returns:
        Whether the plan is complete: it is not when its minutes were over.
    """
    end = time.monotonic() + 60 * limits.minutes if limits.minutes is not None else float("inf")
    for group in plan.groups():
        new = [candidate for candidate in plan.candidates if plan.key(candidate, group) not in store.cells]
        for candidate in new:
            if time.monotonic() > end:
                return False
            if plan.key(candidate, group) not in store.probes:
                store.probes[plan.key(candidate, group)] = _probe(candidate, group, plan.setting, limits)
                store.save()
        if new:
            _measure(plan, store, limits, report, group, new, baseline)
    return True


def _probe(candidate: Candidate, group: Cell, setting: Setting, limits: Limits) -> dict:
    """The batch that fits, the seconds of its steps, and its memory; or a `status` that is not "ok", and the reason."""
    batch, ended = group.batch, None
    while batch:
        found = {"batch": batch, "seconds": []}
        try:
            arguments = dict(candidate=candidate, cell=group._replace(batch=batch), setting=setting)
            for message in _in_own_process(workers.probe, arguments | {"seconds": limits.cell_seconds}, limits):
                seconds = message.pop("seconds", None)
                found["seconds"] += [] if seconds is None else [seconds]
                found |= message
            return found | {"status": "ok"}
        except Ended as error:
            ended = error
            if not ended.memory:
                break
            batch //= 2
    return {"batch": max(batch, 1), "status": "out of memory" if ended.memory else "failed", "reason": ended.reason}


def _measure(
    plan: Plan,
    store: Store,
    limits: Limits,
    report: Callable[[str, dict], None],
    group: Cell,
    new: list[Candidate],
    baseline: Candidate,
) -> None:
    """Makes the rows of a group: of the candidates that are new, beside the baseline."""
    fast, rows = [], {}
    for candidate in dict.fromkeys([*new, baseline]):
        probe = store.probes.get(plan.key(candidate, group))
        if probe is None:
            continue  # a baseline that is not of the plan
        row = {**candidate._asdict(), **group._asdict(), "compiled": plan.setting.compiled, "requested": group.batch}
        rows[candidate] = row | probe | {"measured": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"}
        if probe["status"] == "ok":
            if probe["seconds"][-1] < limits.cell_seconds / (MIN_ROUNDS + 1):
                fast.append(candidate)
            else:
                rows[candidate] |= {"status": "alone", "seconds": probe["seconds"][-1:]}
    if any(candidate in new for candidate in fast):
        _race(fast, rows, plan.setting, limits)
    for candidate in new:
        key = plan.key(candidate, group)
        store.cells[key] = rows[candidate]
        report(key, rows[candidate])
    store.save()


def _race(fast: list[Candidate], rows: dict[Candidate, dict], setting: Setting, limits: Limits) -> None:
    """Fills in the seconds of these rows, of rounds that they ran in turn."""
    cells = [Cell(*(rows[candidate][field] for field in Cell._fields)) for candidate in fast]
    race = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S.%f}"
    times: list[list[float | None]] = [[] for _ in fast]
    clocks = []
    arguments = dict(candidates=fast, cells=cells, setting=setting, rounds=limits.rounds, min_rounds=MIN_ROUNDS)
    reason = "out of memory beside the others"
    try:
        for message in _in_own_process(
            workers.race, arguments | {"seconds": limits.cell_seconds * len(fast)}, limits, len(fast)
        ):
            if "times" in message:
                clocks.append(message["clock_mhz"])
                for mine, seconds in zip(times, message["times"]):
                    mine.append(seconds)
    except Ended as ended:
        reason = ended.reason
    for candidate, mine in zip(fast, times):
        rounds = [seconds for seconds in mine if seconds is not None]
        if len(rounds) >= MIN_ROUNDS or len(rounds) == limits.rounds:
            rows[candidate] |= {"seconds": rounds, "race": race, "clock_mhz": clocks[-1]}
        else:
            rows[candidate] |= {"seconds": [], "status": "failed", "reason": reason}


def _in_own_process(function: Callable, arguments: dict, limits: Limits, candidates: int = 1) -> Iterator[dict]:
    available = available_memory()
    memory = None if available is None or arguments["setting"].device != "cpu" else int(0.9 * available)
    patience = 60 + 10 * limits.cell_seconds * candidates  # a step that takes longer is none to wait for
    with contextlib.closing(stream(function, arguments, patience, memory)) as messages:
        yield from messages
