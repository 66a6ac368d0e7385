"""A sweep of whole models over resolutions, modes and dtypes, that can be interrupted anywhere and goes on."""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any, NamedTuple

from metala_vision.profiling.environment import memory_limit
from metala_vision.profiling.speed import in_turn, workers
from metala_vision.profiling.speed.files import Files
from metala_vision.profiling.speed.isolated import Ended, stream
from metala_vision.profiling.speed.runtimes import version_of
from metala_vision.profiling.speed.steps import Cell
from metala_vision.profiling.speed.timing import MIN_ROUNDS
from metala_vision.profiling.speed.workers import Candidate, Setting

from .rows import runtime_of
from .store import Store


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
        """The keys of all its cells."""
        return [self.key(candidate, cell) for cell in self.groups() for candidate in self.candidates]

    @property
    def series(self) -> str:
        """What cells must share to stand in one table, beside the environment."""
        batch = "auto" if self.batch is None else str(self.batch)
        return f"batch {batch}, compiled" if self.setting.compiled else f"batch {batch}"

    def key(self, candidate: Candidate, cell: Cell) -> str:
        """What a cell is called in the file."""
        runtime = "" if candidate.runtime == "eager" else f" {candidate.runtime}"
        return f"{candidate.model} {candidate.sdpa}{runtime} {cell.mode} {cell.dtype} {cell.size} ({self.series})"


def automatic_batch(size: int, device: str) -> int:
    """Images of about as many pixels as 8 of 224 on a CPU, or 256 on a GPU, down to one: a power of two."""
    images = (8 if device == "cpu" else 256) * (224 / size) ** 2
    return 1 << max(int(images).bit_length() - 1, 0)


def run(plan: Plan, store: Store, limits: Limits, report: Callable[[str, dict], None], baseline: Candidate) -> bool:
    """Measures every cell of the plan that the store does not have; `report` gets each as it is done.

    Every cell is first run alone in a process of its own, to measure its memory; the batch is halved while there is too
    little. Then all cells of a group that are fast enough take turns, the baseline among them: in one process, or each
    in one of its own where any of them runs in another runtime than "eager". A cell that fails gets a row that says so.
    A cell timed alone is measured again once the limits leave time for its rounds.

    Returns:
        Whether the plan is complete: it is not if its minutes were over before.
    """
    exported = Files(plan.setting.files, _patience(limits))
    end = time.monotonic() + 60 * limits.minutes if limits.minutes is not None else float("inf")
    for group in plan.groups():
        keys = {candidate: plan.key(candidate, group) for candidate in plan.candidates}
        new = [candidate for candidate in keys if not _is_settled(store.cells.get(keys[candidate]), limits)]
        for candidate in new:
            if time.monotonic() > end:
                return False
            probe = store.probes.get(keys[candidate])
            if probe is None or _is_outdated(probe, candidate.runtime):
                reason = exported.reason_against(candidate, group)
                failed = {"batch": group.batch, "status": "failed", "reason": reason}
                store.probes[keys[candidate]] = failed if reason else _probe(candidate, group, plan.setting, limits)
                store.save()
        if new:
            _measure(plan, store, limits, group, new, baseline)
            for candidate in new:
                report(keys[candidate], store.cells[keys[candidate]])
    return True


def _is_settled(row: dict | None, limits: Limits) -> bool:
    """Whether a row stays.

    One timed alone does not if there is time for rounds now, unless it failed beside others, and none does that another
    version of its runtime has made.
    """
    return (
        row is not None
        and not _is_outdated(row)
        and not (row["status"] == "alone" and "reason" not in row and _is_fast(row["seconds"], limits))
    )


def _is_outdated(row: dict, runtime: str | None = None) -> bool:
    return row.get("runtime_version") not in (None, version_of(runtime or runtime_of(row)))


def _is_fast(seconds: list[float], limits: Limits) -> bool:
    """Whether there is time for a step that warms up and for the least number of rounds."""
    return seconds[-1] < limits.cell_seconds / (MIN_ROUNDS + 1)


def _probe(candidate: Candidate, group: Cell, setting: Setting, limits: Limits) -> dict:
    """The batch that fits, the seconds of its steps, and its memory; or a `status` that is not "ok", and the reason."""
    batch = group.batch
    while True:
        found: dict[str, Any] = {"batch": batch, "seconds": []}
        arguments = dict(candidate=candidate, cell=group._replace(batch=batch), setting=setting)
        try:
            for message in _in_own_process(workers.probe, arguments | {"seconds": limits.cell_seconds}, limits):
                seconds = message.pop("seconds", None)
                found["seconds"] += [] if seconds is None else [seconds]
                found |= message
            return found | {"status": "ok"}
        except Ended as ended:
            if not ended.memory or batch == 1:
                status = "out of memory" if ended.memory else "failed"
                return {"batch": batch, "status": status, "reason": ended.reason}
        batch //= 2


def _measure(plan: Plan, store: Store, limits: Limits, group: Cell, new: list[Candidate], baseline: Candidate) -> None:
    """Makes the rows of the new candidates of a group."""
    now = datetime.now(timezone.utc)
    rows = {}
    for candidate in new:
        row = {**candidate._asdict(), **group._asdict(), "requested": group.batch, "series": plan.series}
        rows[candidate] = row | store.probes[plan.key(candidate, group)] | {"measured": f"{now:%Y-%m-%dT%H:%M:%SZ}"}
    fast = [c for c, row in rows.items() if row["status"] == "ok" and _is_fast(row["seconds"], limits)]
    for candidate, row in rows.items():
        if row["status"] == "ok" and candidate not in fast:
            row |= {"status": "alone", "seconds": row["seconds"][-1:]}
    if fast:
        probe = store.probes.get(plan.key(baseline, group), {"status": "not planned"})
        beside = [baseline] if probe["status"] == "ok" and _is_fast(probe["seconds"], limits) else []
        runners = list(dict.fromkeys([*fast, *beside]))
        times, clock, reasons = _race(runners, plan, store, group, limits)
        name = f"{now:%Y-%m-%dT%H:%M:%S.%f}"
        store.races[name] = {plan.key(candidate, group): seconds for candidate, seconds in times.items()}
        for candidate in fast:
            if candidate in reasons:  # its time alone still counts
                alone = {"status": "alone", "seconds": rows[candidate]["seconds"][-1:]}
                rows[candidate] |= alone | {"reason": f"beside the others: {reasons[candidate]}"}
            else:
                rows[candidate] |= {"seconds": times[candidate], "race": name, "clock_mhz": clock}
    for candidate, row in rows.items():
        store.cells[plan.key(candidate, group)] = row
    store.save()


def _race(
    runners: list[Candidate], plan: Plan, store: Store, group: Cell, limits: Limits
) -> tuple[dict[Candidate, list[float]], float | None, dict[Candidate, str]]:
    """The seconds of each round of those that ran to the end, the clock, and why the others did not."""
    cells = [group._replace(batch=store.probes[plan.key(candidate, group)]["batch"]) for candidate in runners]
    arguments = dict(candidates=runners, cells=cells, setting=plan.setting, rounds=limits.rounds)
    arguments["seconds"] = seconds = limits.cell_seconds * len(runners)
    rounds, reasons, clock, died = [], {}, None, ""
    if all(candidate.runtime == "eager" for candidate in runners):
        messages = _in_own_process(workers.race, arguments, limits, len(runners))
    else:
        entries = [in_turn.Entry(candidate, cell) for candidate, cell in zip(runners, cells)]
        messages = _steps(in_turn.race(entries, plan.setting, limits.rounds, seconds, _patience(limits)))
    try:
        for message in messages:
            if "failed" in message:
                reasons[runners[message["failed"]]] = message["reason"]
            else:
                rounds.append(message["times"])
                clock = message["clock_mhz"]
    except Ended as ended:
        died = ended.reason
    if len(rounds) < min(MIN_ROUNDS, limits.rounds):
        reasons = {candidate: reasons.get(candidate, died) for candidate in runners}
    times = {c: [r[i] for r in rounds] for i, c in enumerate(runners) if c not in reasons}
    return times, clock, reasons


def _steps(messages: Iterator[dict]) -> Iterator[dict]:
    """Messages of `in_turn.race` as `workers.race` sends them."""
    for message in messages:
        if "times" in message:
            message["times"] = [seconds and seconds["step"] for seconds in message["times"]]
        yield message


def _in_own_process(function: Callable, arguments: dict, limits: Limits, candidates: int = 1) -> Iterator[dict]:
    memory = memory_limit() if arguments["setting"].device == "cpu" else None
    with contextlib.closing(stream(function, arguments, _patience(limits, candidates), memory)) as messages:
        yield from messages


def _patience(limits: Limits, candidates: int = 1) -> float:
    """Seconds of silence after which a process is given up: a step that takes longer is none to wait for."""
    return 60 + 10 * limits.cell_seconds * candidates
