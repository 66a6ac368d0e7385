"""What is measured in processes of their own: one candidate alone for its memory, several in turn for their times."""

import contextlib
import math
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

import metala_vision  # noqa: F401  (registers the models)
from metala_vision.profiling.environment import clock_mhz, reset_peak, resident_memory

from .attention import attention_that_ran, calls_softmax
from .isolated import one_line
from .runtimes import OF_FILES, step_of_file, version_of
from .steps import Cell, channels, compiled, create, make_step, tokens
from .timing import MIN_ROUNDS, seconds_of

TURN = 0.1  # seconds


class Candidate(NamedTuple):
    """A model, the softmax attention it runs, and what runs it."""

    model: str
    sdpa: str = "default"  # or another name of `attention.SDPA`
    runtime: str = "eager"  # or another name of `runtimes.RUNTIMES`


class Setting(NamedTuple):
    """What a whole sweep has in common."""

    device: str = "cpu"
    threads: int = 1
    compiled: bool = False
    files: str = ""  # folder of exported files, where a candidate's runtime takes them


def find_softmax(send: Callable[[dict], None], model: str, size: int) -> None:
    """Sends as `found` whether a model calls PyTorch's softmax attention, so that its kernel makes a difference."""
    built = create(model, size).eval()
    with torch.no_grad():
        send({"found": calls_softmax(lambda: built(torch.zeros(1, channels(built), size, size)))})


def probe(send: Callable[[dict], None], candidate: Candidate, cell: Cell, setting: Setting, seconds: float) -> None:
    """Two steps of one candidate, the second only if the first took less than `seconds`, and the memory they took.

    Sends the `seconds` of each step, and then `peak_memory`, `baseline_memory` (before the model was made; None where
    it cannot be read), `parameters`, `tokens` of one image, the `attention` kernel that PyTorch took, and the
    `runtime_version`. In training
    the peak includes the optimizer's moments. For a compiled model it excludes what compiling took, but not the
    compiler itself, which stays in memory.
    """
    set_up(setting)
    baseline, _ = resident_memory()
    model, run = build(candidate, cell, setting)
    on_gpu = setting.device.startswith("cuda")
    if setting.compiled or candidate.runtime == "compile" or on_gpu:
        run()  # compiles the model, or the Triton kernels
    if on_gpu:
        baseline = 0
        torch.cuda.reset_peak_memory_stats(setting.device)
    else:
        reset_peak()
    took = seconds_of(run, setting.device)
    send({"seconds": took})
    if took < seconds:
        send({"seconds": seconds_of(run, setting.device)})
    peak = torch.cuda.max_memory_allocated(setting.device) if on_gpu else resident_memory()[1]
    send(
        {
            "peak_memory": peak,
            "baseline_memory": baseline,
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokens": tokens(model, cell.size),
            "runtime_version": version_of(candidate.runtime),
            # last, since it needs memory that no step does
            "attention": None if candidate.runtime in OF_FILES else _attention(model, candidate, cell),
        }
    )


def _attention(model: torch.nn.Module, candidate: Candidate, cell: Cell) -> str | None:
    """The kernel of softmax attention, which is chosen by device, dtype, shape of a head and mode.

    It runs two images at most; in training, one alone is too few for a batch norm behind the pooling.
    """
    gradients = torch.inference_mode if cell.mode == "infer" else torch.enable_grad
    few = cell._replace(batch=min(2, cell.batch), mode="infer")
    return attention_that_ran(make_step(model, few, gradients, candidate.sdpa))


def race(
    send: Callable[[dict], None],
    candidates: list[Candidate],
    cells: list[Cell],
    setting: Setting,
    rounds: int,
    seconds: float,
) -> None:
    """Times the candidates in turn, round by round, after a round that warms up.

    A turn is one step, or as many as take `TURN` seconds: with a single short step the clock and a GPU's start would
    dominate. It ends after `rounds`, or once `seconds` are over and there are `MIN_ROUNDS`. After each round it sends
    its `times`, the seconds of a step for each candidate, and the `clock_mhz`. A candidate that fails has None from
    then on, and its index is sent as `failed` with the `reason`.
    """
    set_up(setting)
    runs: list[Callable[[], object] | None] = [None] * len(candidates)
    repeats = [1] * len(candidates)

    def failing_alone(index: int, act: Callable[[int], float | None]) -> float | None:
        try:
            return act(index)
        except Exception as error:  # of one candidate: the others go on
            send({"failed": index, "reason": one_line(error)})
        runs[index] = None  # frees its memory
        if setting.device.startswith("cuda"):
            with contextlib.suppress(RuntimeError):  # an error of the device itself, which the others will report
                torch.cuda.empty_cache()
        return None

    def begin(index: int) -> None:
        _, run = build(candidates[index], cells[index], setting)
        runs[index] = run
        run()

    def turn(index: int) -> float | None:
        run = runs[index]
        return None if run is None else seconds_of(run, setting.device, repeats[index])

    for index in range(len(candidates)):
        failing_alone(index, begin)
    for index in range(len(candidates)):
        warm = failing_alone(index, turn)
        repeats[index] = 1 if warm is None else min(math.ceil(TURN / warm), 100)
    start = time.perf_counter()
    for number in range(rounds):
        times = [failing_alone(index, turn) for index in range(len(candidates))]
        send({"times": times, "clock_mhz": clock_mhz(setting.device)})
        if number + 1 >= MIN_ROUNDS and time.perf_counter() - start > seconds:
            break


def set_up(setting: Setting) -> None:
    """What every process of its own begins with."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler writes an error where there is no GPU
    torch.set_num_threads(setting.threads)


def build(candidate: Candidate, cell: Cell, setting: Setting) -> tuple[torch.nn.Module, Callable[[], object]]:
    """A candidate's model and its step; a runtime of files has the model without weights beside it."""
    if candidate.runtime in OF_FILES:
        step = step_of_file(candidate.model, cell, candidate.runtime, setting.threads, setting.files)
        return create(candidate.model, cell.size, "meta"), step
    model = create(candidate.model, cell.size, setting.device).train(cell.mode == "train")
    is_compiled = setting.compiled or candidate.runtime == "compile"
    step = make_step(compiled(model, candidate.sdpa) if is_compiled else model, cell, sdpa=candidate.sdpa)
    return model, step
