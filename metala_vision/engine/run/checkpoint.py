"""Checkpoints of plain tensors and numbers: whole at any moment, and loadable anywhere with weights_only=True."""

import logging
import math
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from metala_vision.engine.tasks.base import TaskModel
from metala_vision.errors import InputError
from metala_vision.models.checkpoints import fill_older

from . import atomic  # noqa: F401  (registers the file backend)

LAST, BEST, HISTORY = "last.pth", "best.pth", "history.json"  # what a run leaves in its work_dir
EMA_KEY = "state_dict_ema"  # timm's: create_model(checkpoint_path=...) takes the average where there is one
WEIGHTS = ("auto", "ema", "raw")


def read_checkpoint(filename: str | Path) -> dict:
    """Loads a checkpoint to the CPU, with weights_only=True: no code in it is run.

    Raises:
        InputError: no such file, or nothing that can be read as a checkpoint.
    """
    if not Path(filename).is_file():
        raise InputError(f"checkpoint: no file {filename}")
    try:
        checkpoint = torch.load(filename, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to run what is in the file
        raise InputError(
            f"checkpoint: {filename} is no checkpoint that can be read: it is no file of torch.save, or holds more "
            f"than tensors, numbers, strings and containers of them, which could run code"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # torch raises almost anything on files that are cut short or damaged
        raise InputError(f"checkpoint: {filename} is no checkpoint that can be read: {error}") from error
    weights = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"checkpoint: {filename} is no checkpoint that can be read: it holds no state_dict of tensors")
    return checkpoint


def to_portable(checkpoint: dict, prefix: str) -> None:
    """Turns a checkpoint of mmengine, in place, into tensors, numbers, strings and containers of them.

    The keys of its `state_dict` lose `prefix`, that of the `TaskModel`. A classifier's weights then have the names of
    the timm model, so that timm.create_model(name, checkpoint_path=...) takes the file. mmengine's own form pickles
    classes and even `getattr`, which weights_only=True rightly refuses.
    """
    checkpoint["state_dict"] = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items()}
    hub = checkpoint["message_hub"]
    checkpoint["message_hub"] = dict(
        log_scalars={key: _pack(buffer) for key, buffer in hub["log_scalars"].items()},
        runtime_info={key: _plain(value, key) for key, value in hub["runtime_info"].items()},
        resumed_keys=dict(hub["resumed_keys"]),
    )
    for key in ("meta", "optimizer", "param_schedulers"):
        if key in checkpoint:
            checkpoint[key] = _plain(checkpoint[key], key)


def from_portable(checkpoint: dict, model: TaskModel, weights: str = "raw", resume: bool = False) -> str:
    """The inverse of `to_portable`, in place; also takes a bare state_dict of the trained model.

    Args:
        checkpoint: what `read_checkpoint` gave.
        model: the one that will load its `state_dict`.
        weights: which weights become its `state_dict`: "raw", "ema" (their moving average), or "auto", the average
            where there is one.
        resume: whether the optimiser of the run is to go on, too.

    Returns:
        "raw" or "ema".

    Raises:
        InputError: no such weights, or they are not those of `model`; the message lists the keys. Or the run that is to
            go on is an older one whose model had fewer parameters.
    """
    if weights not in WEIGHTS:
        raise InputError(f"weights: got {weights!r}, expected one of {WEIGHTS}")
    if weights == "ema" and EMA_KEY not in checkpoint:
        raise InputError("weights: got 'ema', but the checkpoint holds no moving average; use raw")
    used = "ema" if weights != "raw" and EMA_KEY in checkpoint else "raw"
    found = checkpoint.get(EMA_KEY if used == "ema" else "state_dict")
    if found is None:
        found = dict(checkpoint)
        checkpoint.clear()
    checkpoint["state_dict"] = {model.prefix + k.removeprefix(model.prefix): v for k, v in found.items()}
    older = fill_older(checkpoint["state_dict"], model)
    if resume and any(key.endswith("decay_bias") for key in older):
        raise InputError(
            "--resume: the run began before models had a decay_bias, and its optimiser does not know this parameter; "
            "write --cfg-options model.backbone.decay_bias=False"
        )
    _check_keys(checkpoint["state_dict"], model.state_dict(), model.prefix)
    if "message_hub" in checkpoint:
        scalars = checkpoint["message_hub"]["log_scalars"]
        checkpoint["message_hub"]["log_scalars"] = {key: _unpack(packed) for key, packed in scalars.items()}
    return used


def _check_keys(found: dict, expected: dict, prefix: str) -> None:
    problems = {
        "missing": [k for k in expected if k not in found],
        "unexpected": [k for k in found if k not in expected],
        "of another shape": [
            f"{k} {tuple(found[k].shape)} instead of {tuple(expected[k].shape)}"
            for k in expected
            if k in found and getattr(found[k], "shape", None) != expected[k].shape
        ],
    }
    lines = [
        f"  {what} ({len(keys)}): {', '.join(k.removeprefix(prefix) for k in keys[:10])}{', ...' if keys[10:] else ''}"
        for what, keys in problems.items()
        if keys
    ]
    if lines:
        raise InputError("checkpoint: it is of another model than the config's\n" + "\n".join(lines))


def _pack(buffer: HistoryBuffer) -> dict:
    values, counts = buffer.data
    return dict(max_length=buffer.max_length, values=torch.tensor(values), counts=torch.tensor(counts))


def _unpack(packed: dict) -> HistoryBuffer:
    return HistoryBuffer(packed["values"].numpy(), packed["counts"].numpy(), packed["max_length"])


def _plain(value: object, name: str) -> object:
    """Containers, tensors, numbers and strings as they are, numpy numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (str, int, float, torch.Tensor)):
        return value
    if isinstance(value, Mapping):
        return {k: _plain(v, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v, name) for v in value)
    raise TypeError(f"checkpoint: {name} is a {type(value).__name__}, which no plain checkpoint can hold")


@HOOKS.register_module()
class LastBestCheckpointHook(Hook):
    """Keeps `last.pth`, to resume from, and `best.pth`, the best validation so far.

    `last.pth` is written after the validation of its epoch, so that a resumed run has seen every validation before it.
    A run killed anywhere leaves both files whole.

    Args:
        interval: epochs between two `last.pth`; the last epoch always writes one.
        save_best: validation metric that decides, or None for no `best.pth`. A score that is not finite is never best.
        rule: "greater" or "less"; None is "less" for a loss and "greater" for the rest.

    Raises:
        InputError: an argument out of range, a metric that validation does not give, weights that are not finite, a
            file that cannot be written.
    """

    priority = "VERY_LOW"

    def __init__(self, interval: int = 1, save_best: str | None = "top1", rule: str | None = None):
        if interval < 1:
            raise InputError(f"interval: got {interval!r}, expected at least 1 epoch")
        if rule not in ("greater", "less", None):
            raise InputError(f"rule: got {rule!r}, expected 'greater' or 'less'")
        self.interval = interval
        self.save_best = save_best
        self.less = rule == "less" or (rule is None and (save_best or "").endswith("loss"))

    def after_train_epoch(self, runner: Runner) -> None:
        # The loop counts the epoch only after this call.
        if not _validates(runner, runner.epoch + 1):
            self._save_last(runner, runner.epoch + 1)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if not getattr(runner, "is_training", False):
            return
        metrics = metrics or {}
        score = None if self.save_best is None else metrics.get(self.save_best)
        if score is not None and math.isfinite(score):
            former = runner.message_hub.runtime_info.get("best_score")
            if former is None or (score < former if self.less else score > former):
                runner.message_hub.update_info("best_score", score)
                runner.message_hub.update_info("best_epoch", runner.epoch)
                self._save(runner, BEST, runner.epoch)
        self._save_last(runner, runner.epoch)
        if self.save_best is not None and score is None:
            raise InputError(f"save_best: no metric {self.save_best!r}, expected one of {tuple(metrics)}")

    def _save_last(self, runner: Runner, epoch: int) -> None:
        if epoch % self.interval == 0 or epoch == runner.max_epochs:
            self._save(runner, LAST, epoch)

    def _save(self, runner: Runner, name: str, epoch: int) -> None:
        parameters = [p.detach().isfinite().all() for p in runner.task.net.parameters()]
        if not torch.stack(parameters).all():
            raise InputError(
                f"training: weights are not finite after step {runner.iter} (epoch {epoch}); the checkpoints are of "
                f"earlier epochs. A lower rate or gradient clipping may help"
            )
        # Without `meta` mmengine would count one epoch more: it expects to be called before the loop counts this one.
        try:
            runner.save_checkpoint(
                runner.work_dir,
                name,
                meta=dict(epoch=epoch, iter=runner.iter, step_images=list(runner.step_images())),
                backend_args=dict(backend="atomic"),
            )
        except OSError as error:
            raise InputError(
                f"work_dir: {runner.work_dir}/{name} could not be written after epoch {epoch} ({error}); "
                f"the former {name}, if there was one, is whole. Make room and continue with --resume auto"
            ) from error
        print_log(f"epoch {epoch}: wrote {name}", logger="current", level=logging.INFO)


def _validates(runner: Runner, epoch: int) -> bool:
    """Whether mmengine's EpochBasedTrainLoop validates after this epoch."""
    loop = runner.train_loop
    if runner.val_loop is None or epoch < loop.val_begin:
        return False
    return epoch % loop.val_interval == 0 or epoch == loop.max_epochs
