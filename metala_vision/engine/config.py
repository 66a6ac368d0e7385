"""Configs: reading them, overriding them from a command line, and refusing what nobody would understand."""

import argparse
import difflib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from metala_vision.errors import InputError, near_matches

from .checkpoint import BEST, LAST, read_checkpoint
from .optim import DTYPES

RUNNER_KEYS = set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}
KNOWN_KEYS = RUNNER_KEYS | {"custom_imports", "device"}
REQUIRED_KEYS = ("model", "train_dataloader", "val_dataloader", "test_dataloader", "train_cfg", "optim_wrapper")


def load_config(path: str, options: dict | Sequence[str] | None = None) -> Config:
    """A config file with overrides: a dict of "key.subkey" to value, or strings "key.subkey=value".

    Raises:
        InputError: no such file, Python that does not run, a missing key, a key near to a known one and not it, or
            an override of something that is not there or that is only a variable of the file.
    """
    options = options if isinstance(options, dict) else _parse_options(options or ())
    if not Path(path).is_file():
        raise InputError(f"config: no file {path}")
    try:
        config = Config.fromfile(path)
    except Exception as error:  # a config is Python: it can raise anything
        raise InputError(f"config: {path} cannot be read: {type(error).__name__}: {error}") from error
    for key in config:
        # Other names are a config's own variables.
        if key not in KNOWN_KEYS and difflib.get_close_matches(key, KNOWN_KEYS, n=1, cutoff=0.85):
            raise InputError(f"config: {path}: unknown key {key!r}{near_matches(key, KNOWN_KEYS)}")
    missing = [key for key in REQUIRED_KEYS if key not in config]
    if missing:
        raise InputError(f"config: {path} lacks {', '.join(missing)}")
    for key in options:
        _check_option(config, key)
    config.merge_from_dict(options)
    return config


def _parse_options(strings: Sequence[str]) -> dict:
    wrong = [string for string in strings if "=" not in string]
    if wrong:
        raise InputError(f"--cfg-options: got {wrong[0]!r}, expected KEY=VALUE")
    parser = argparse.ArgumentParser()
    parser.add_argument("--options", nargs="*", action=DictAction)
    return parser.parse_args(["--options", *strings]).options or {}


def _check_option(config: Config, key: str) -> None:
    """A new argument of an existing part is for that part to judge; everything above it must be there."""
    *parents, last = key.split(".")
    node = config
    for depth, name in enumerate(parents):
        known = list(node) if isinstance(node, dict | Config) else [str(i) for i in range(len(node))]
        if name not in known:
            where = ".".join(parents[:depth]) or "the config"
            raise InputError(f"--cfg-options: {key}: {where} has no {name!r}{near_matches(name, known)}")
        node = node[name] if isinstance(node, dict | Config) else node[int(name)]
        if not isinstance(node, dict | Config | list | tuple):
            raise InputError(f"--cfg-options: {key}: {name!r} is {node!r}, which has no parts")
    if not parents and last in config and last not in KNOWN_KEYS:
        raise InputError(
            f"--cfg-options: {key!r} is a variable of the config file, already used when an override comes; "
            f"override what it was used for, such as train_cfg.max_epochs or train_dataloader.batch_size"
        )
    if not parents and last not in KNOWN_KEYS:
        raise InputError(f"--cfg-options: unknown key {key!r}{near_matches(key, {*config, *KNOWN_KEYS})}")


def check_device(device: str) -> str:
    """Returns `device` if this machine has it.

    Raises:
        InputError: it has not, or there is no such device.
    """
    if device == "auto":
        return device
    try:
        kind = torch.device(device)
    except RuntimeError:
        kind = None
    if kind is None or kind.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"--device: got {device!r}, expected auto, cpu, cuda, cuda:1 or mps")
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device: got {device!r}, but torch finds no CUDA GPU here; use --device cpu")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device: got {device!r}, but there are {torch.cuda.device_count()} GPUs")
    if kind.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"--device: got {device!r}, but torch finds no Apple GPU here; use --device cpu")
    return device


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


def apply_train_options(
    config: Config,
    work_dir: str | None = None,
    resume: str | None = None,
    device: str = "auto",
    amp: str | None = None,
    seed: int | None = None,
) -> None:
    """Writes the options of `tools/train.py` into the config.

    Raises:
        InputError: an option that does not fit; a work_dir that holds a run, without `resume`.
    """
    config.work_dir = work_dir or config.get("work_dir") or str(Path("work_dirs") / Path(config.filename).stem)
    config.device = check_device(device)
    if amp is not None and amp not in DTYPES:
        raise InputError(f"--amp: got {amp!r}, expected one of {tuple(DTYPES)}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: training in several processes is not supported yet; start one"
        )
    folder = Path(config.work_dir)
    source = None
    if resume == "auto":
        source = folder / LAST if (folder / LAST).exists() else None
    elif resume is not None:
        source = Path(resume)
        if not source.is_file():
            raise InputError(f"--resume: no file {resume}")
    occupied = (folder / LAST).exists() or (folder / BEST).exists()
    if occupied and (source is None or source.parent.resolve() != folder.resolve()):
        raise InputError(f"--work-dir: {folder} holds a run already; continue it with --resume auto, or name another")
    if source is not None:
        seed, amp = _same_run(source, seed, amp)
        config.resume, config.load_from = True, str(source)
    if seed is not None:
        config.randomness = dict(config.get("randomness", {}), seed=seed)
    if amp is not None:
        config.optim_wrapper.type = "AutocastOptimWrapper"
        config.optim_wrapper.dtype = amp


def _same_run(source: Path, seed: int | None, amp: str | None) -> tuple[int, str | None]:
    """Seed and mixed precision of the run to continue: with others it would be another run.

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
    return former_seed, former_amp


def apply_test_options(
    config: Config, checkpoint: str, out: str | None = None, img_size: int | None = None, device: str = "auto"
) -> None:
    """Writes the options of `tools/test.py` into the config.

    Raises:
        InputError: an option that does not fit.
    """
    if not Path(checkpoint).is_file():
        raise InputError(f"checkpoint: no file {checkpoint}")
    config.device = check_device(device)
    transform = config.test_dataloader.dataset.get("transform") or {}
    if img_size is not None:
        if img_size < 1:
            raise InputError(f"--img-size: got {img_size}, expected a positive integer")
        if "img_size" not in transform:
            raise InputError("--img-size: the test transform of the config has no img_size; use EvalTransform there")
        transform.img_size = img_size
    name = f"test_{transform['img_size']}" if "img_size" in transform else "test"
    config.work_dir = out or str(Path(checkpoint).parent / name)
    # Testing needs no training data, loops or event files.
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "val_dataloader", "val_cfg"):
        config.pop(key, None)
    config.pop("val_evaluator", None)
    config.visualizer = None
