"""Whether a model learns on the GPU: two hundred steps in half precision, with finite and falling losses."""

import datetime
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import metala_vision  # noqa: F401  (registers the models)
from metala_vision.profiling.speed.steps import compiled_module

from .parts import Cell, Job

CLASSES = 16
WINDOW = 20  # steps at either end, whose mean losses are compared
FALLS_TO = 0.7  # the last losses over the first, at most


def cells(job: Job) -> list[Cell]:
    """Both half precisions, compiled, with recomputed activations, and one process of DistributedDataParallel."""
    runs: dict[str, dict[str, Any]] = {
        "bfloat16": {},
        "float16": {"dtype": torch.float16},
        "bfloat16, compiled": {"wrap": partial(compiled, rehearse=job.rehearse)},
        "bfloat16, checkpointed": {"wrap": checkpointed},
        "bfloat16, DDP of one process": {"wrap": partial(distributed, job=job)},
    }
    return [Cell(name, partial(train, job, **options)) for name, options in runs.items()]


def checkpointed(model: Any) -> nn.Module:  # timm's models share methods, but no class
    """The model, whose blocks forget their activations and compute them again."""
    model.set_grad_checkpointing()
    return model


def compiled(model: nn.Module, rehearse: bool) -> nn.Module:
    """torch.compile of the model; a rehearsal only traces it."""
    return compiled_module(model, fullgraph=True, **({"backend": "eager"} if rehearse else {}))


def distributed(model: nn.Module, job: Job) -> nn.Module:
    """The model under DDP, by NCCL on a GPU and gloo on a CPU."""
    file = job.scratch / f"process_group_{time.monotonic_ns()}"
    dist.init_process_group(
        "nccl" if job.device == "cuda" else "gloo",
        init_method=f"file://{file}",
        world_size=1,
        rank=0,
        timeout=datetime.timedelta(seconds=60),
    )
    return nn.parallel.DistributedDataParallel(model)


def train(
    job: Job, dtype: torch.dtype = torch.bfloat16, wrap: Callable[[nn.Module], nn.Module] = lambda model: model
) -> dict:
    """The row of a run: `first` and `last` mean losses, steps, milliseconds of a step; failed unless they fall."""
    torch.manual_seed(0)
    steps, batch, pixels = (3 * WINDOW, 8, 16) if job.rehearse else (200, 64, 128)
    name, options = ("metala_vit_nano", dict(patch_size=8, depth=1)) if job.rehearse else ("metala_vit_tiny", {})
    with torch.device(job.device):
        model = timm.create_model(name, num_classes=CLASSES, img_size=pixels, **options)
        patterns = torch.randn(CLASSES, 3, pixels, pixels)
    try:
        model = wrap(model)
        losses, took = _steps(job, model, patterns, dtype, steps, batch)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.compiler.reset()
    first, last = statistics.fmean(losses[:WINDOW]), statistics.fmean(losses[-WINDOW:])
    row = {"first": first, "last": last, "steps": steps, "batch": batch, "pixels": pixels, "step_ms": 1e3 * took}
    if not all(map(math.isfinite, losses)):
        where = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
        return row | {"status": "failed", "reason": f"the loss of step {where} is not finite"}
    if last > FALLS_TO * first:
        return row | {"status": "failed", "reason": f"the loss fell from {first:.3f} to {last:.3f} only"}
    return row


def _steps(
    job: Job, model: nn.Module, patterns: torch.Tensor, dtype: torch.dtype, steps: int, batch: int
) -> tuple[list[float], float]:
    """The loss of each step, and the median seconds of one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    scaler = torch.amp.GradScaler(job.device, enabled=dtype == torch.float16)
    losses, seconds = [], []
    for step in range(steps):
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / WINDOW)
        labels = torch.randint(CLASSES, (batch,), device=job.device)
        images = patterns[labels] + torch.randn(batch, *patterns.shape[1:], device=job.device)
        with torch.autocast(job.device, dtype):
            loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())  # waits for the device: the time is that of the whole step
        seconds.append(time.perf_counter() - start)
    return losses, statistics.median(seconds)
