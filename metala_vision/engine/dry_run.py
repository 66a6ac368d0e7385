"""Everything a run would do, for two batches: does it fit, how much memory, how long would the whole of it take."""

import itertools
import math
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from mmengine.dist import all_gather_object

from metala_vision.data import SampleKey
from metala_vision.errors import InputError

from .busy import Others
from .run.ema import ModelEmaHook
from .run.image_sizes import training_sizes
from .run.optim import highest_rate
from .run.runner import VisionRunner
from .run.schedule import warn_of_end

STEPS = 2  # of each image size
SAMPLES = 16  # images whose loading is timed
NOTABLE = 0.15  # a larger share of the cores taken by other programs is reported


def dry_run(runner: VisionRunner) -> dict:
    """Two training steps, and a validation batch twice; nothing is written but the log.

    The first of each warms up: it compiles what is to be compiled. How long a step will take is the longer of two
    times: that of the second step, without waiting for images, and that which the workers need for a batch of images.
    Without workers it is their sum.

    Returns:
        A dict of plain values: `images_per_step`, `seconds_per_batch_model` and `seconds_per_batch_data`,
        `seconds_per_epoch` with its validation, `hours`, `peak_memory_gb` of the fullest process (0 where the system
        does not say), `memory_of` (GPU or process), `others_share` of the cores that other programs took meanwhile.
        Where the training has several image sizes, `sizes` has the images, the seconds and the steps of each size in
        the whole run. The other figures are then means over all steps, except `input`, which is the largest.

    Raises:
        InputError: what does not fit, as at the start of a real run.
    """
    runner.prepare()
    loop, loader = runner.train_loop, runner.train_dataloader
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    images_per_step = math.prod(runner.step_images())
    lr = highest_rate(runner.optim_wrapper)  # before a warm-up
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    warn_of_end(runner.cfg.get("param_scheduler"), loop.max_epochs, loop.max_iters)
    runner.load_or_resume()
    # Every step updates: the optimiser's memory and time belong to what is looked for.
    runner.optim_wrapper._accumulative_counts = 1
    runner.optim_wrapper.initialize_count_status(runner.model, 0, loop.max_iters)
    for hook in runner.hooks:
        if isinstance(hook, ModelEmaHook):
            hook.start(runner)
    device = next(runner.model.parameters()).device
    others = Others()
    per_image = _seconds_to_load(loader.dataset)
    try:
        paces = _paces(runner, device, per_image)
        validation = _validate(runner, device, per_image)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"memory: a batch of {loader.batch_sampler.batch_size} images does not fit {device}: {error}. Lower "
            f"train_dataloader.batch_size, or give --grad-checkpointing or --amp"
        ) from error
    taken = max(all_gather_object(others.share()))
    steps = sum(pace.steps for pace in paces)
    model, data = (sum(pace.steps * getattr(pace, part) for pace in paces) / steps for part in ("model", "data"))
    # Without workers the model waits for the images.
    seconds = [pace.steps * (sum if loader.num_workers == 0 else max)((pace.model, pace.data)) for pace in paces]
    epoch = sum(seconds) / loop.max_epochs + validation / max(1, getattr(loop, "val_interval", 1))
    sizes = {pace.img_size: dict(images=pace.images, seconds=round(pace.model, 4), steps=pace.steps) for pace in paces}
    return {
        "model": runner.cfg.model.backbone.model_name,
        "parameters": sum(p.numel() for p in runner.task.net.parameters()),
        "trainable": sum(p.numel() for p in runner.task.net.parameters() if p.requires_grad),
        "images": len(loader.dataset),
        "classes": len(loader.dataset.classes),
        "input": paces[-1].shape,
        **({"sizes": sizes} if training_sizes(loader) else {}),
        "images_per_step": images_per_step,
        "lr": lr,
        "seconds_per_batch_model": round(model, 4),
        "seconds_per_batch_data": round(data, 4),
        "data_workers": loader.num_workers,
        "seconds_per_epoch": round(epoch, 1),
        "epochs": loop.max_epochs,
        "hours": round(loop.max_epochs * epoch / 3600, 2),
        "peak_memory_gb": round(max(all_gather_object(_peak_memory(device))) / 1e9, 2),
        "others_share": round(taken, 2),
        "memory_of": "GPU" if device.type == "cuda" else "process",
        "device": str(device),
        "processes": runner.world_size,
    }


class Pace(NamedTuple):
    """What the batches of one image size take; `img_size` is None where the transform alone decides."""

    img_size: int | None
    shape: list[int]
    images: int
    steps: int  # in the whole run
    model: float  # seconds of a step
    data: float  # seconds for its images, with all workers


def _paces(runner: VisionRunner, device: torch.device, per_image: float) -> list[Pace]:
    """Trains on batches of each size, the smallest first."""
    loader, epochs = runner.train_dataloader, runner.train_loop.max_epochs
    workers = max(1, loader.num_workers)
    runner.model.train()
    if not training_sizes(loader):
        batches = itertools.chain.from_iterable(itertools.repeat(loader))  # the loader begins anew where it has fewer
        seconds, shape = _train(runner, itertools.islice(batches, STEPS), device)
        size, data = loader.batch_sampler.batch_size, _data_seconds(loader, per_image)
        return [Pace(None, shape, size, epochs * len(loader), seconds, data)]
    paces, dataset = [], loader.dataset
    for img_size, steps in loader.batch_sampler.steps(epochs).items():
        images = loader.batch_sampler.full_batch(img_size)
        start = time.perf_counter()
        samples = [dataset[SampleKey(i % len(dataset), i, img_size)] for i in range(images)]
        data = (time.perf_counter() - start) / workers
        batch = loader.collate_fn(samples)
        seconds, shape = _train(runner, itertools.repeat(batch, STEPS), device)
        paces.append(Pace(img_size, shape, images, steps, seconds, data))
    return paces


def _train(runner: VisionRunner, batches: Iterable[dict], device: torch.device) -> tuple[float, list[int]]:
    """Seconds of the last of the steps, and the shape of its images."""
    for batch in batches:
        seconds = _timed(device, lambda batch=batch: runner.model.train_step(batch, runner.optim_wrapper))
    return seconds, list(batch["inputs"][0].shape) if len(batch["inputs"]) else []


def _validate(runner: VisionRunner, device: torch.device, per_image: float) -> float:
    """Seconds of a whole validation, estimated from the second pass over one of its batches."""
    if runner.val_loop is None or len(runner.val_dataloader) == 0:
        return 0.0
    loader = runner.val_dataloader
    runner.model.eval()
    batch = next(iter(loader))
    with torch.inference_mode():
        for _ in range(STEPS):
            seconds = _timed(device, lambda: runner.model.val_step(batch))
    return len(loader) * max(seconds, _data_seconds(loader, per_image))


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
        *(
            f"{size} pixels: {pace['images']} images a batch, {pace['seconds']:.3g} s, {pace['steps']} steps"
            for size, pace in result.get("sizes", {}).items()
        ),
        f"peak memory: {result['peak_memory_gb']:.2f} GB ({result['memory_of']})"
        if result["peak_memory_gb"]
        else "peak memory: not known on this system",
        f"an epoch: {_span(result['seconds_per_epoch'])}; {result['epochs']} epochs: "
        f"{_span(result['epochs'] * result['seconds_per_epoch'])}",
    ]
    if result["others_share"] > NOTABLE:
        lines.append(
            f"other programs took {result['others_share']:.0%} of the processor meanwhile: on an idle machine these "
            f"times are shorter"
        )
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
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - start


def _seconds_to_load(dataset) -> float:
    indices = range(0, len(dataset), max(1, -(-len(dataset) // SAMPLES)))
    dataset[0]  # opens what is opened once
    start = time.perf_counter()
    for index in indices:
        dataset[index]
    return (time.perf_counter() - start) / len(indices)


def _data_seconds(loader, per_image: float) -> float:
    return loader.batch_sampler.batch_size * per_image / max(1, loader.num_workers)


def _peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the GPU, or the resident set of this process, 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
