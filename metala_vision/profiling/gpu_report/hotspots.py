"""Where a step's time goes: the kernels that take longest, forward and in training."""

from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from metala_vision.profiling.speed.steps import Cell as Step
from metala_vision.profiling.speed.steps import create, make_step

from .parts import Cell, Job

LISTED = 10
STEPS = 3


def cells(job: Job) -> list[Cell]:
    """Tiny at 224 and 1024 pixels, one forward pass and one training step each."""
    name, sizes = ("metala_vit_nano", [(32, 1)]) if job.rehearse else ("metala_vit_tiny", [(224, 256), (1024, 8)])
    return [
        Cell(f"{name} {pixels}x{batch} {mode}", partial(longest, job, name, Step(pixels, batch, "bfloat16", mode)))
        for pixels, batch in sizes
        for mode in ("infer", "train")
    ]


def longest(job: Job, name: str, cell: Step) -> dict:
    """The longest kernels with their calls, milliseconds in a step and shares of all kernels' time."""
    run = make_step(create(name, cell.size, job.device).train(cell.mode == "train"), cell)
    run()
    on_gpu = job.device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            run()
        if on_gpu:
            torch.cuda.synchronize()
    events = [
        (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event)
        for event in profiler.key_averages()
    ]
    total = sum(microseconds for microseconds, _ in events)
    events.sort(key=lambda pair: -pair[0])
    kernels = [
        {
            "kernel": event.key[:80],
            "calls": event.count / STEPS,
            "milliseconds": microseconds / 1e3 / STEPS,
            "share": microseconds / total,
        }
        for microseconds, event in events[:LISTED]
    ]
    return {"kernels": kernels, "milliseconds": total / 1e3 / STEPS}
