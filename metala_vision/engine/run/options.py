"""What the options of the tools change in a config."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config

from metala_vision.command_line import check_device
from metala_vision.description import plain, size_name
from metala_vision.errors import InputError

from .checkpoint import BEST, LAST, read_checkpoint
from .image_sizes import set_image_sizes
from .optim import DTYPES
from .settings import check_model, check_optimizer, trained_settings


def limit_workers(config: Config) -> None:
    """No data loader of the config gets more workers than this process has processors.

    The processes that torchrun starts on a machine share them.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processors = max(1, processors // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    for part in ("train", "val", "test"):
        loader = config.get(f"{part}_dataloader")
        if loader is not None:
            loader.num_workers = min(loader.get("num_workers", 0), processors)


def set_data_root(config: Config, root: str) -> None:
    """Points every dataset of the config to one folder.

    Raises:
        InputError: the datasets of the config have no root.
    """
    datasets = [config[f"{part}_dataloader"].dataset for part in ("train", "val", "test")]
    if not all("root" in dataset for dataset in datasets):
        kinds = ", ".join(sorted({dataset.type for dataset in datasets}))
        raise InputError(f"--data-root: got {root!r}, but the config's datasets ({kinds}) take no root")
    for dataset in datasets:
        dataset.root = root


def set_num_classes(config: Config, num_classes: int) -> None:
    """Sets the number of classes of the model, and of datasets of masks, whose files do not name their classes.

    Raises:
        InputError: a number below 1, or a model of sequences, which has no classes.
    """
    if num_classes < 1:
        raise InputError(f"--num-classes: got {num_classes}, expected at least 1")
    if config.model.type == "SequenceModel":
        raise InputError(
            "--num-classes: sequences have tokens and no classes; set the vocab_size of model and datasets"
        )
    if config.model.type == "ImageClassifier":
        config.model.backbone.num_classes = num_classes
    else:
        config.model.num_classes = num_classes
    for part in ("train", "val", "test"):
        dataset = config[f"{part}_dataloader"].dataset
        if isinstance(dataset.get("classes"), int):
            dataset.classes = num_classes


def apply_train_options(
    config: Config,
    work_dir: str | None = None,
    resume: str | None = None,
    device: str = "auto",
    amp: str | None = None,
    seed: int | None = None,
    compile: bool = False,
    grad_checkpointing: bool = False,
    ema: float | None = None,
    multi_scale: Sequence[int] | None = None,
    curriculum: Sequence[int] | None = None,
    equal_tokens: bool = False,
) -> None:
    """Writes the options of `tools/train.py` into the config.

    Raises:
        InputError: an option that does not fit; a work_dir that holds a run, without `resume`.
    """
    config.work_dir = work_dir or config.get("work_dir") or str(Path("work_dirs") / Path(config.filename).stem)
    config.device = check_device(device)
    limit_workers(config)
    if amp is not None and amp not in DTYPES:
        raise InputError(f"--amp: got {amp!r}, expected one of {tuple(DTYPES)}")
    if torch.cuda.is_available() and device not in ("cpu", "mps"):
        for part in ("train", "val", "test"):
            config[f"{part}_dataloader"].setdefault("pin_memory", True)
    _check_scaling(config)
    set_image_sizes(config, multi_scale, curriculum, equal_tokens)
    if compile:
        config.model.compile = True
    if grad_checkpointing:
        config.model.grad_checkpointing = True
    if ema is not None:
        _set_ema(config, {"use_warmup": True, **(_ema_of(config) or {}), "decay": ema})
    folder = Path(config.work_dir)
    source = None
    if resume == "auto":
        source = folder / LAST if (folder / LAST).exists() else None
    elif resume is not None:
        source = Path(resume)
        if not source.is_file():
            raise InputError(
                f"--resume: no file {resume}; give the {LAST} of a run, or --resume auto for that of --work-dir"
            )
    occupied = (folder / LAST).exists() or (folder / BEST).exists()
    if occupied and (source is None or source.parent.resolve() != folder.resolve()):
        raise InputError(f"--work-dir: {folder} holds a run already; continue it with --resume auto, or name another")
    if source is not None:
        seed, amp = _same_run(config, source, seed, amp)
        config.model.pop("init_from", None)  # the weights are the run's own
        _forget_start(config)
        config.resume, config.load_from = True, str(source)
    if seed is not None:
        config.randomness = dict(config.get("randomness", {}), seed=seed)
    if amp is not None:
        config.optim_wrapper.type = "AutocastOptimWrapper"
        config.optim_wrapper.dtype = amp


def _check_scaling(config: Config) -> None:
    scaling = config.get("auto_scale_lr")
    if scaling is None:
        return
    unknown = set(scaling) - {"enable", "base_batch_size"}
    if unknown or (scaling.get("enable") and "base_batch_size" not in scaling):
        raise InputError(f"auto_scale_lr: got {dict(scaling)}, expected enable and base_batch_size")


def _ema_of(config: Config) -> dict | None:
    """The arguments of the config's ModelEmaHook."""
    for hook in config.get("custom_hooks") or []:
        if hook["type"] == "ModelEmaHook":
            return {"decay": 0.9999, "use_warmup": False, **{k: v for k, v in hook.items() if k != "type"}}
    return None


def _set_ema(config: Config, arguments: dict) -> None:
    others = [hook for hook in config.get("custom_hooks") or [] if hook["type"] != "ModelEmaHook"]
    config.custom_hooks = [*others, dict(type="ModelEmaHook", **arguments)]


def _same_run(config: Config, source: Path, seed: int | None, amp: str | None) -> tuple[int, str | None]:
    """Seed and mixed precision of the run to continue: with others it would be another run. Its moving average goes on.

    Raises:
        InputError: weights alone, or options that contradict the run.
    """
    checkpoint = read_checkpoint(source)
    if "meta" not in checkpoint or "optimizer" not in checkpoint:
        raise InputError(f"--resume: {source} holds weights alone; to start from them set load_from={source} instead")
    former_seed = checkpoint["meta"]["seed"]
    scaler = checkpoint["optimizer"].get("loss_scaler")
    former_amp = None if scaler is None else "float16" if scaler else "bfloat16"
    if seed not in (None, former_seed):
        raise InputError(f"--seed: got {seed}, but the run of {source} has seed {former_seed}; leave it out")
    if amp not in (None, former_amp):
        raise InputError(f"--amp: got {amp}, but the run of {source} has {former_amp or 'float32'}; leave it out")
    if amp is None and former_amp is None and config.optim_wrapper.get("type") == "AutocastOptimWrapper":
        dtype = config.optim_wrapper.get("dtype")
        raise InputError(f"optim_wrapper: got {dtype}, but the run of {source} has float32; leave it out")
    check_optimizer(config, source, checkpoint)
    former_ema, ema = checkpoint.get("ema"), _ema_of(config)
    if ema is not None and ema != former_ema:
        was = "no moving average" if former_ema is None else f"one with {former_ema}"
        raise InputError(f"--ema: got a moving average with {ema}, but the run of {source} has {was}; leave it out")
    former_sizes = trained_settings(checkpoint).get("train_dataloader", {}).get("batch_sampler")
    sizes = config.train_dataloader.get("batch_sampler")
    if sizes is not None and plain(sizes, "batch_sampler") != former_sizes:
        was = "one image size" if former_sizes is None else former_sizes
        raise InputError(
            f"--multi-scale, --curriculum: got {dict(sizes)}, but the run of {source} has {was}; leave it out"
        )
    if former_sizes is not None:
        config.train_dataloader.batch_sampler = dict(former_sizes)
    check_model(config, source, checkpoint, "python tools/train.py", f"--resume {source}")
    if former_ema is not None:
        _set_ema(config, dict(former_ema))
    return former_seed, former_amp


def _forget_start(config: Config) -> None:
    """Takes out the weights that a backbone was to begin with: a file or a download that need no longer be there."""
    backbone = config.model.get("backbone") or {}
    backbone.pop("checkpoint_path", None)
    if backbone.get("pretrained"):
        backbone["pretrained"] = False


def apply_test_options(
    config: Config,
    checkpoint: str,
    img_size: int | tuple[int, int] | None = None,
    crop_ratio: float | None = None,
    device: str = "auto",
) -> None:
    """Writes the options of `tools/test.py` into the config, and takes out what belongs to training.

    Raises:
        InputError: an option that does not fit.
    """
    if not Path(checkpoint).is_file():
        beside = sorted(path.name for path in Path(checkpoint).parent.glob("*.pth"))
        hint = f"; there is {' and '.join(beside)} in its folder" if beside else ""
        raise InputError(f"checkpoint: no file {checkpoint}{hint}")
    config.device = check_device(device)
    limit_workers(config)
    transform = config.test_dataloader.dataset.get("transform") or {}
    if img_size is not None and min(img_size if isinstance(img_size, tuple) else (img_size,)) < 1:
        raise InputError(f"--img-size, --resolutions: got {size_name(img_size)}, expected a positive integer")
    if crop_ratio is not None and not 0 < crop_ratio <= 1:
        raise InputError(f"--crop-ratio: got {crop_ratio}, expected a number in (0, 1]")
    for key, value in (("img_size", img_size), ("crop_ratio", crop_ratio)):
        if value is None:
            continue
        if transform.get("type") != "EvalTransform":
            option = "--" + key.replace("_", "-")
            raise InputError(f"{option}: the test transform of the config has no {key}; use EvalTransform there")
        transform[key] = value
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "val_dataloader", "val_cfg"):
        config.pop(key, None)
    config.pop("val_evaluator", None)
    config.visualizer = None
    # The checkpoint replaces what a run starts from; what only training needs would cost time and memory here.
    for key in ("init_from", "distillation", "mixup"):
        config.model.pop(key, None)
    _forget_start(config)
