"""Everything a run would do, for two batches: does it fit, how much memory, how long would the whole of it take."""

import resource
import sys
import time

import torch
from mmengine.dist import all_gather_object

from .runner import ClassificationRunner

STEPS = 2
SAMPLES = 16  # images whose loading is timed


def dry_run(runner: ClassificationRunner) -> dict:
    """Two training steps and one validation batch; nothing is written but the log.

    The first step warms up: it compiles what is to be compiled. The second one's time, without waiting for images, and
    the time that the workers need for a batch of images decide, the longer of the two, how long a step will take.

    Returns:
        A dict of plain values: `images_per_step`, `seconds_per_step`, `seconds_per_batch_model` and `_data`,
        `seconds_per_epoch` with its validation, `hours`, `peak_memory_gb` of the fullest process and what it is of.

    Raises:
        InputError: what does not fit, as at the start of a real run.
    """
    runner.prepare()
    loop, loader = runner.train_loop, runner.train_dataloader
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    runner.optim_wrapper.initialize_count_status(runner.model, 0, loop.max_iters)
    device = next(runner.model.parameters()).device
    per_image = _seconds_to_load(loader.dataset)
    batches = iter(loader)
    runner.model.train()
    for _ in range(STEPS):
        batch = next(batches)
        step = _timed(device, lambda batch=batch: runner.model.train_step(batch, runner.optim_wrapper))
    del batches
    peak = _peak_memory(device)
    validation = 0.0
    if runner.val_loop is not None:
        runner.model.eval()
        batch = next(iter(runner.val_dataloader))
        with torch.inference_mode():
            seconds = _timed(device, lambda: runner.model.val_step(batch))
        validation = len(runner.val_dataloader) * max(seconds, _data_seconds(runner.val_dataloader, per_image))
    data = _data_seconds(loader, per_image)
    # Without workers the model waits for the images.
    seconds = step + data if loader.num_workers == 0 else max(step, data)
    epoch = len(loader) * seconds + validation / max(1, getattr(loop, "val_interval", 1))
    accumulated = runner.optim_wrapper._accumulative_counts
    return {
        "model": runner.cfg.model.backbone.model_name,
        "parameters": sum(p.numel() for p in runner.classifier.backbone.parameters()),
        "trainable": sum(p.numel() for p in runner.classifier.backbone.parameters() if p.requires_grad),
        "images": len(loader.dataset),
        "classes": len(loader.dataset.classes),
        "input": list(batch["inputs"].shape[1:]),
        "images_per_step": loader.batch_size * runner.world_size * accumulated,
        "lr": runner.optim_wrapper.optimizer.param_groups[-1]["lr"],
        "seconds_per_batch_model": round(step, 4),
        "seconds_per_batch_data": round(data, 4),
        "data_workers": loader.num_workers,
        "seconds_per_epoch": round(epoch, 1),
        "epochs": loop.max_epochs,
        "hours": round(loop.max_epochs * epoch / 3600, 2),
        "peak_memory_gb": round(max(all_gather_object(peak)) / 1e9, 2),
        "memory_of": "GPU" if device.type == "cuda" else "process",
        "device": str(device),
        "processes": runner.world_size,
    }


def describe(result: dict) -> str:
    """The result of a dry run as a few lines to read."""
    waits = result["seconds_per_batch_data"] > result["seconds_per_batch_model"] and result["data_workers"] > 0
    lines = [
        f"{result['model']}: {result['parameters'] / 1e6:.1f} M parameters, {result['trainable'] / 1e6:.1f} M trained",
        f"data: {result['images']} images in {result['classes']} classes, as {'x'.join(map(str, result['input']))}",
        f"a step: {result['images_per_step']} images in {result['processes']} processes on {result['device']}, "
        f"rate {result['lr']:.3g}",
        f"a batch: {result['seconds_per_batch_model']:.3g} s in the model, {result['seconds_per_batch_data']:.3g} s to "
        f"load with {result['data_workers']} workers{': more of them would help' if waits else ''}",
        f"peak memory: {result['peak_memory_gb']:.2f} GB ({result['memory_of']})",
        f"an epoch: {_span(result['seconds_per_epoch'])}; {result['epochs']} epochs: {_span(3600 * result['hours'])}",
    ]
    return "\n".join(lines)


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _timed(device: torch.device, call) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _seconds_to_load(dataset) -> float:
    indices = range(0, len(dataset), max(1, len(dataset) // SAMPLES))
    dataset[0]  # opens what is opened once
    start = time.perf_counter()
    for index in indices:
        dataset[index]
    return (time.perf_counter() - start) / len(indices)


def _data_seconds(loader, per_image: float) -> float:
    return loader.batch_size * per_image / max(1, loader.num_workers)


def _peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the GPU, or the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
