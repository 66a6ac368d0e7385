"""Candidates in processes of their own that all live at once and are asked in turn.

Threads of two runtimes in one process would disturb each other; and on a shared machine times of different minutes
cannot be compared. So every candidate is built and warmed up first, in its process, and then runs while all others
wait, blocked on a pipe, with threads that sleep.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from metala_vision.profiling.environment import clock_mhz, memory_limit

from .isolated import Ended, Worker
from .products import floors
from .steps import Cell, make_step
from .timing import MIN_ROUNDS, seconds_of
from .workers import Candidate, Setting, build, set_up

TURN = 0.3  # seconds that a candidate runs in a round: threads that spin between its steps do so at their best
REST = 0.05  # seconds after which threads that spin at the end of a run are asleep; those of PyTorch take up to 0.02


class Entry(NamedTuple):
    """What a process is asked to run."""

    candidate: Candidate
    cell: Cell
    floor: bool = False  # the model's matrix products alone as well, see `products`


def serve(send: Callable[[dict], None], receive: Callable[[], dict], entry: Entry, setting: Setting) -> None:
    """Builds and warms up, sends `ready`, and then, whenever it is asked, the `seconds` of a step by its name.

    The names are "step", and "floor" and "torch floor" for the matrix products by the model's library and by torch.mm.
    """
    set_up(setting)
    model, step = build(entry.candidate, entry.cell, setting)
    runs = {"step": step} | (floors(make_step(model, entry.cell, torch.no_grad)) if entry.floor else {})
    repeats = {}
    for name, run in runs.items():
        run()
        repeats[name] = max(1, min(math.ceil(TURN / seconds_of(run)), 1000))
    time.sleep(REST)
    send({"ready": True})
    while True:
        receive()
        seconds = {}
        for name, run in runs.items():
            if repeats[name] > 1:
                run()  # wakes threads, and brings back what the others drove out of the caches
            seconds[name] = seconds_of(run, repeats=repeats[name])
        time.sleep(REST)
        send({"seconds": seconds})


def race(
    entries: Sequence[Entry],
    setting: Setting,
    rounds: int,
    seconds: float,
    patience: float,
    told: Callable[[str], None] = lambda text: None,
) -> Iterator[dict]:
    """Times the entries in turn, round by round.

    It ends after `rounds`, or once `seconds` are over and there are `MIN_ROUNDS`. A process may take 0.9 of the memory
    that is left beside those before it.

    Args:
        patience: seconds that a process may be silent.
        told: gets a word on what is being built.

    Yields:
        After each round `times`, a dict of seconds by name for each entry (see `serve`), or None for one that has
        failed, and `clock_mhz`; and `failed`, the index of an entry that fails, with the `reason`, as it happens.
    """
    with contextlib.ExitStack() as stack:
        workers: list[Worker | None] = []
        for index, entry in enumerate(entries):
            told(f"{entry.candidate.model}, {entry.candidate.runtime}")
            worker = stack.enter_context(_started(entry, setting))
            try:
                worker.receive(patience)
                workers.append(worker)
            except Ended as ended:
                worker.close()
                workers.append(None)
                yield {"failed": index, "reason": ended.reason}
        told("")
        start = time.perf_counter()
        for number in range(rounds):
            if not any(workers):
                break
            times: list[dict[str, float] | None] = []
            for index, asked in enumerate(workers):
                times.append(None)
                if asked is None:
                    continue
                try:
                    times[index] = (asked.ask({}, patience) or {})["seconds"]
                except Ended as ended:
                    asked.close()  # frees its memory
                    workers[index] = None
                    yield {"failed": index, "reason": ended.reason}
            yield {"times": times, "clock_mhz": clock_mhz()}
            if number + 1 >= MIN_ROUNDS and time.perf_counter() - start > seconds:
                break


def _started(entry: Entry, setting: Setting) -> Worker:
    return Worker(serve, {"entry": entry, "setting": setting}, memory_limit(), asked=True)
