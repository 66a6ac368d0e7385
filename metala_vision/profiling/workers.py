"""What is measured in processes of their own: one candidate alone for its memory, several in turn for their times."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

import metala_vision  # noqa: F401  (registers the models)

from .environment import clock_mhz, reset_peak, resident_memory
from .isolated import is_out_of_memory
from .steps import Cell, create, make_step, tokens


class Candidate(NamedTuple):
    """A model, and the softmax attention it runs."""

    model: str
    sdpa: str = "fused"  # or "math"


class Setting(NamedTuple):
    """What a whole sweep has in common."""

    device: str = "cpu"
    threads: int | None = None
    compiled: bool = False


def probe(send: Callable[[dict], None], candidate: Candidate, cell: Cell, setting: Setting, seconds: float) -> None:
    """Two steps of one candidate, the second only if the first took less than `seconds`, and the memory they took.

    Sends `seconds` of each step, and then `peak_memory`, `baseline_memory` (before the model was made; 0 on a GPU),
    `parameters` and `tokens` of one image.
    """
    _set_up(setting)
    on_gpu = setting.device.startswith("cuda")
    baseline = 0
    if not on_gpu:
        reset_peak()
        baseline, _ = resident_memory()
    model, run = _build(candidate, cell, setting)
    if setting.compiled:
        run()  # compiles
    took = _timed(run)
    send({"seconds": took})
    if took < seconds:
        send({"seconds": _timed(run)})
    peak = torch.cuda.max_memory_allocated(setting.device) if on_gpu else resident_memory()[1]
    send(
        {
            "peak_memory": peak,
            "baseline_memory": baseline,
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokens": tokens(model, cell.size),
        }
    )


def race(
    send: Callable[[dict], None],
    candidates: list[Candidate],
    cells: list[Cell],
    setting: Setting,
    rounds: int,
    seconds: float,
    min_rounds: int,
) -> None:
    """Times the candidates in turn, round by round, after one that warms up.

    Ends after `rounds`, or once `seconds` are over and there are `min_rounds`. Sends after each round its `times`, one
    for each candidate or None for one that ran out of memory beside the others, and the `clock_mhz`.
    """
    _set_up(setting)
    runs = [_build(candidate, cell, setting)[1] for candidate, cell in zip(candidates, cells)]
    start = time.perf_counter()
    dead: set[int] = set()
    for number in range(-1, rounds):
        times: list[float | None] = []
        for index, run in enumerate(runs):
            try:
                times.append(None if index in dead else _timed(run))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                dead.add(index)
                times.append(None)
            if setting.device.startswith("cuda"):
                torch.cuda.empty_cache()  # what one candidate keeps, the next could lack
        if number >= 0:
            send({"times": times, "clock_mhz": clock_mhz(setting.device)})
            if number + 1 >= min_rounds and time.perf_counter() - start > seconds:
                break
        else:
            send({"warm": True})


def _set_up(setting: Setting) -> None:
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)


def _build(candidate: Candidate, cell: Cell, setting: Setting) -> tuple[torch.nn.Module, Callable[[], None]]:
    model = create(candidate.model, cell.size, setting.device).train(cell.mode == "train")
    runnable = torch.compile(model) if setting.compiled else model
    step = make_step(runnable, cell, sdpa=candidate.sdpa)
    if not setting.device.startswith("cuda"):
        return model, step

    def synchronised() -> None:
        step()
        torch.cuda.synchronize(setting.device)

    return model, synchronised


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
