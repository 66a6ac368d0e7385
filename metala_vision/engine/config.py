"""Configs: reading them, overriding them from a command line, and refusing what nobody would understand."""

import difflib
import inspect
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from metala_vision.errors import InputError, near_matches

from .checkpoint import BEST, LAST
from .optim import DTYPES

RUNNER_KEYS = set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}
KNOWN_KEYS = RUNNER_KEYS | {"custom_imports", "device", "compile"}
REQUIRED_KEYS = ("model", "train_dataloader", "val_dataloader", "test_dataloader", "train_cfg", "optim_wrapper")


def load_config(path: str, options: dict | None = None) -> Config:
    """A config file with `key.subkey=value` overrides.

    Raises:
        InputError: no such file, Python that does not run, a missing key, or a key near to a known one and not it.
    """
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
    for key in options or {}:
        _check_option(config, key)
    config.merge_from_dict(options or {})
    return config


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
    if not parents and last not in config and last not in KNOWN_KEYS:
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
    except RuntimeError as error:
        raise InputError(f"--device: got {device!r}, expected auto, cpu, cuda, cuda:1 or mps") from error
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
    if seed is not None:
        config.randomness = dict(config.get("randomness", {}), seed=seed)
    if amp is not None:
        if amp not in DTYPES:
            raise InputError(f"--amp: got {amp!r}, expected one of {tuple(DTYPES)}")
        config.optim_wrapper.type = "AutocastOptimWrapper"
        config.optim_wrapper.dtype = amp
    last = Path(config.work_dir) / LAST
    if resume is None:
        if last.exists() or (last.parent / BEST).exists():
            raise InputError(
                f"--work-dir: {config.work_dir} holds a run already; continue it with --resume auto, or name another"
            )
    elif resume != "auto":
        if not Path(resume).is_file():
            raise InputError(f"--resume: no file {resume}")
        config.resume, config.load_from = True, resume
    elif last.exists():
        config.resume, config.load_from = True, str(last)


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
