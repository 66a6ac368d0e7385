"""Whole models beside DeiT of the same size, in bfloat16: eager, compiled, and as CUDA graphs."""

import gc
import time
from collections.abc import Callable
from functools import partial

import torch

import metala_vision  # noqa: F401  (registers the models)
from metala_vision.profiling.speed.isolated import is_out_of_memory, one_line
from metala_vision.profiling.speed.steps import Cell as Step
from metala_vision.profiling.speed.steps import compiled_module, create, make_step
from metala_vision.profiling.speed.timing import Spread, seconds_of

from .parts import Cell, Job

PAIRS = {
    "tiny": ("metala_vit_tiny", "deit_tiny_patch16_224"),
    "small": ("metala_vit_small", "deit_small_patch16_224"),
    "base": ("metala_vit_base", "deit_base_patch16_224"),
}
WAYS = {"eager": None, "compiled": "default", "graphs": "reduce-overhead"}  # torch.compile's mode
# What tells most comes first: (size, pixels, batch).
SIZES = [
    *(("tiny", pixels, batch) for pixels, batch in ((224, 256), (1024, 8))),
    *(("small", pixels, batch) for pixels, batch in ((224, 256), (1024, 8))),
    ("base", 224, 256),
    *((size, pixels, batch) for pixels, batch in ((512, 8), (2048, 1), (384, 8)) for size in PAIRS),
    ("base", 1024, 8),
]
REHEARSED = ("metala_vit_nano", "deit_tiny_patch16_224")
TURN = 0.2  # seconds of one turn at most, which is one step or several
ROUNDS = 7


def cells(job: Job) -> list[Cell]:
    """A cell for each pair, resolution, mode and way: eager ones first within each half of the sizes."""
    if job.rehearse:
        pairs = [("nano", REHEARSED, 32, 1)]
    else:
        pairs = [(size, PAIRS[size], pixels, batch) for size, pixels, batch in SIZES]
    first, rest = pairs[:5], pairs[5:]
    return [
        Cell(
            f"{size} {pixels}x{batch} {mode} {way}",
            partial(measure, job, names, Step(pixels, batch, "bfloat16", mode), way),
        )
        for group in (first, rest)
        for way in WAYS
        for size, names, pixels, batch in group
        for mode in ("infer", "train")
    ]


def compilations(job: Job) -> list[Cell]:
    """What is worth compiling before it is measured, so that the measurement finds it in torch's caches."""
    if job.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(0.1)  # the tests that run meanwhile need the rest
    if job.rehearse:
        name, _ = REHEARSED
        return [Cell("one", partial(_compile, job, name, Step(32, 1, "bfloat16", "infer"), "compiled"))]
    sizes = [(PAIRS[size], pixels, batch) for size, pixels, batch in SIZES[:9]]
    return [
        Cell(f"{name} {pixels} {mode} {way}", partial(_compile, job, name, Step(pixels, batch, "bfloat16", mode), way))
        for names, pixels, batch in sizes
        for way in ("compiled", "graphs")
        for mode in ("infer", "train")
        for name in names
    ]


def _compile(job: Job, name: str, cell: Step, way: str) -> dict:
    try:
        return prepared(job, name, cell, way)[1]
    finally:
        torch.compiler.reset()


def measure(job: Job, names: tuple[str, str], cell: Step, way: str) -> dict:
    """The row of a pair: for each model `milliseconds`, `spread`, `images_per_second` and `memory_mb`, and the `ratio`.

    The ratio is the softmax model's time over ours, as the median over rounds in which both ran in turn.
    """
    runs, found = {}, {}
    for name in names:
        try:
            runs[name], found[name] = prepared(job, name, cell, way)
        except Exception as error:  # of one model: the other one's figures stand alone
            found[name] = {"reason": "out of memory" if is_out_of_memory(error) else one_line(error)}
        gc.collect()
    spreads = in_turn(runs, job)
    for name, spread in spreads.items():
        found[name] |= {"milliseconds": 1e3 * spread.median, "spread": spread.relative_range}
        found[name]["images_per_second"] = cell.batch / spread.median
    row = {"models": found, **cell._asdict(), "way": way}
    if len(spreads) == 2:
        row["ratio"] = spreads[names[1]].ratio_to(spreads[names[0]])
    failed = [f"{name}: {found[name]['reason']}" for name in names if "reason" in found[name]]
    torch.compiler.reset()
    return row | ({"status": "failed", "reason": "; ".join(failed)} if failed else {})


def prepared(job: Job, name: str, cell: Step, way: str) -> tuple[Callable[[], object], dict]:
    """A warm step of a model, and its memory: the peak of the device over what was there before."""
    before = torch.cuda.memory_allocated() if job.device == "cuda" else 0
    model = create(name, cell.size, job.device).train(cell.mode == "train")
    run = make_step(compiled(model, way, job), cell, torch.no_grad)
    start = time.perf_counter()
    for _ in range(3):  # compiles, tunes, and records graphs, which takes two of them
        run()
    found = {"first_steps_s": round(time.perf_counter() - start, 1)}
    if job.device == "cuda" and way != "graphs":  # graphs hold their memory before a step begins
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        found["memory_mb"] = round((torch.cuda.max_memory_allocated() - before) / 1e6)
    return run, found


def compiled(model: torch.nn.Module, way: str, job: Job) -> torch.nn.Module:
    """The model as it is, or compiled; a rehearsal only traces it."""
    if WAYS[way] is None:
        return model
    if job.rehearse:
        return compiled_module(model, backend="eager", dynamic=False, fullgraph=True)
    return compiled_module(model, mode=WAYS[way], dynamic=False, fullgraph=True)


def in_turn(runs: dict[str, Callable[[], object]], job: Job) -> dict[str, Spread]:
    """Seconds of a step, round by round; a turn is as many steps as take `TURN`."""
    repeats = {name: max(1, min(50, int(TURN / max(seconds_of(run, job.device), 1e-6)))) for name, run in runs.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(2 if job.rehearse else ROUNDS):
        for name, run in runs.items():
            taken[name].append(seconds_of(run, job.device, 1 if job.rehearse else repeats[name]))
    return {name: Spread(tuple(values)) for name, values in taken.items()}
