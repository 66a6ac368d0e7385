"""Reads configs, overrides them from a command line, and refuses what has no meaning."""

import argparse
import difflib
import inspect
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import EpochBasedTrainLoop, Runner, TestLoop, ValLoop
from torch.utils.data import DataLoader

from metala_vision.errors import InputError, near_matches

RUNNER_KEYS = set(inspect.signature(Runner.__init__).parameters) - {"self", "cfg"}
KNOWN_KEYS = RUNNER_KEYS | {"custom_imports", "device"}
# Parts that a config may lack and a command line may bring in.
OPEN_PARTS = (
    *("model.mixup", "model.distillation", "optim_wrapper.clip_grad", "optim_wrapper.paramwise_cfg"),
    *("auto_scale_lr", "randomness"),
)
REQUIRED_KEYS = ("model", "train_dataloader", "val_dataloader", "test_dataloader", "train_cfg", "optim_wrapper")


def load_config(path: str, options: dict | Sequence[str] | None = None) -> Config:
    """A config file with overrides: a dict of "key.subkey" to value, or strings "key.subkey=value".

    The `launcher` that the config of a finished run names is left out, since each command has its own.

    Raises:
        InputError: no such file, Python that does not run, a missing key, a key that looks like a misspelt known one,
            or an override of something that is not there or that is only a variable of the file.
    """
    options = options if isinstance(options, dict) else parse_options(options or ())
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
    config.pop("launcher", None)  # the one that a finished run was started by; --launcher says it of this one
    for key in options:
        _check_option(config, key)
    config.merge_from_dict(options)
    _check_parts(config)
    return config


def _check_parts(config: Config) -> None:
    """Checks the keys of loaders and of the training loop, which get them as arguments without a check of their own.

    Raises:
        InputError: one that they do not take.
    """
    own = {"dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn", "num_batch_per_epoch"}  # mmengine's
    of_loader = own | (set(inspect.signature(DataLoader.__init__).parameters) - {"self"})
    loops = {"train_cfg": EpochBasedTrainLoop, "val_cfg": ValLoop, "test_cfg": TestLoop}
    given = {"self", "runner", "dataloader", "evaluator"}  # by the runner
    of_loops = {part: {*inspect.signature(loop.__init__).parameters} - given for part, loop in loops.items()}
    of_loops["train_cfg"].add("by_epoch")
    loaders = {f"{part}_dataloader": of_loader for part in ("train", "val", "test")}
    if not dict(config["train_cfg"]).get("by_epoch", True):  # the other loop is refused by its name
        of_loops.pop("train_cfg")
    for part, keys in {**loaders, **of_loops}.items():
        if not isinstance(config.get(part), dict) or "type" in config[part]:
            continue
        for key in config[part]:
            if key not in keys:
                raise InputError(f"config: {part} has no {key!r}{near_matches(key, keys)}")


def parse_options(strings: Sequence[str]) -> dict:
    wrong = [string for string in strings if "=" not in string]
    if wrong:
        raise InputError(f"--cfg-options: got {wrong[0]!r}, expected KEY=VALUE")
    parser = argparse.ArgumentParser()
    parser.add_argument("--options", nargs="*", action=DictAction)
    try:
        return parser.parse_args(["--options", *strings]).options or {}
    except (AssertionError, RecursionError, ValueError) as error:  # mmengine's parser raises these for dicts and quotes
        raise InputError(
            f"--cfg-options: {' '.join(strings)} cannot be read; values are numbers, words, lists and tuples of them"
        ) from error


def _check_option(config: Config, key: str) -> None:
    """Checks that the parents of a key exist. The key itself may be new: the part that gets it judges it."""
    *parents, last = key.split(".")
    first = key.split(".")[0]
    if first in config and first not in KNOWN_KEYS:
        raise InputError(
            f"--cfg-options: {key}: {first!r} is a variable of the config file, already used when an override comes; "
            f"override what it was used for, such as train_cfg.max_epochs or train_dataloader.batch_size"
        )
    node = config
    for depth, name in enumerate(parents):
        known = list(node) if isinstance(node, dict | Config) else [str(i) for i in range(len(node))]
        if name not in known and ".".join(parents[: depth + 1]) in OPEN_PARTS:
            return
        if name not in known:
            where = ".".join(parents[:depth]) or "the config"
            raise InputError(f"--cfg-options: {key}: {where} has no {name!r}{near_matches(name, known)}")
        node = node[name] if isinstance(node, dict | Config) else node[int(name)]
        if not isinstance(node, dict | Config | list | tuple):
            raise InputError(f"--cfg-options: {key}: {name!r} is {node!r}, which has no parts")
    if not parents and last not in KNOWN_KEYS:
        raise InputError(f"--cfg-options: unknown key {key!r}{near_matches(key, {*config, *KNOWN_KEYS})}")


@contextmanager
def config_errors() -> Iterator[None]:
    """Turns errors of registries and constructors about a config's types and arguments into InputErrors.

    Errors that are bugs of our own pass unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        origin: BaseException = error
        while origin.__context__ is not None:
            origin = origin.__context__
        place = traceback.extract_tb(origin.__traceback__)[-1].filename
        # A TypeError or KeyError from the registry is due to the config; one from within a constructor is a bug.
        if isinstance(error, (KeyError, TypeError)) and f"{os.sep}registry{os.sep}" not in place:
            raise
        raise InputError(f"config: {error.args[0] if error.args else error}") from error
