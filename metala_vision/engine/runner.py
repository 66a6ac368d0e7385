"""mmengine's Runner with our defaults: a device by name, whole checkpoints, and every check before the first step."""

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from metala_vision.errors import InputError

from .checkpoint import BEST, LAST
from .hooks import UnreadableImagesHook, history
from .plots import plot_confusion

DEFAULT_HOOKS = dict(
    step_seed=dict(type="StepSeedHook"),
    unreadable=dict(type="UnreadableImagesHook"),
    history=dict(type="HistoryHook"),
    checkpoint=dict(type="LastBestCheckpointHook"),
)


@contextmanager
def _config_errors() -> Iterator[None]:
    """What registries and constructors raise over a config's types and arguments, as InputError."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise InputError(f"config: {error.args[0] if error.args else error}") from error


@RUNNERS.register_module()
class ClassificationRunner(Runner):
    """Trains, validates and tests an `ImageClassifier`.

    Beyond mmengine's arguments its config takes `device`: "auto", "cpu", "cuda", "cuda:1", "mps".
    """

    is_training = False

    @classmethod
    def from_cfg(cls, cfg: Config) -> "ClassificationRunner":
        """A runner for a config.

        Raises:
            InputError: a type that is not registered, or an argument it does not take.
        """
        with _config_errors():
            return super().from_cfg(cfg)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        super().register_default_hooks({**DEFAULT_HOOKS, **(hooks or {})})

    def build_optim_wrapper(self, optim_wrapper: dict | OptimWrapper) -> OptimWrapper:
        if isinstance(optim_wrapper, dict):
            optim_wrapper = {"constructor": "TimmOptimConstructor", **optim_wrapper}
        with _config_errors():
            return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler: dict | list) -> list:
        with _config_errors():
            return super().build_param_scheduler(scheduler)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        device = self.cfg.get("device", "auto")
        if device == "auto" or self.distributed:
            return super().wrap_model(model_wrapper_cfg, model)
        return model.to(device)

    def prepare(self) -> None:
        """Builds loops, data and optimiser and checks that they fit the model: nothing may fail an hour later for it.

        Raises:
            InputError: what does not fit.
        """
        with _config_errors():  # the first use of a loop builds it, with its data
            parts = [(self._train_loop, "train_loop"), (self._val_loop, "val_loop"), (self._test_loop, "test_loop")]
            loops = [getattr(self, name) for config, name in parts if config is not None]
        if self.optim_wrapper is not None:
            self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        datasets = [loop.dataloader.dataset for loop in loops]
        model = getattr(self.model, "module", self.model).backbone
        for dataset in datasets:
            where = f"{type(dataset).__name__} ({dataset.split})"
            if len(dataset.classes) > model.num_classes:
                raise InputError(
                    f"model: num_classes is {model.num_classes}, but the labels of {where} "
                    f"run from 0 to {len(dataset.classes) - 1}"
                )
            if dataset.classes != datasets[0].classes:
                raise InputError(f"data: the classes of {where} differ from those of {datasets[0].split}")
            image = next(
                (s["image"] for s in map(dataset.__getitem__, range(min(len(dataset), 100))) if "image" in s), None
            )
            if image is None:
                raise InputError(f"data: the first images of {where} are all unreadable: {dataset[0]['error']}")
            in_chans = getattr(model, "in_chans", image.shape[0])
            if image.shape[0] != in_chans:
                raise InputError(
                    f"model: in_chans is {in_chans}, but the images of {where} have {image.shape[0]} channels"
                )

    def train(self) -> nn.Module:
        self.is_training = True
        try:
            return super().train()
        finally:
            self.is_training = False

    def resume(self, filename: str, *args, map_location: str = "cpu", **kwargs) -> None:
        super().resume(filename, *args, map_location=map_location, **kwargs)

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        """As mmengine's, always with the weights_only=True of torch.load, and strict about the model's keys."""
        if "://" not in filename and not Path(filename).is_file():
            raise InputError(f"checkpoint: no file {filename}")
        try:
            return super().load_checkpoint(filename, *args, **kwargs)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise InputError(f"checkpoint: {filename} is no checkpoint that can be read: {error}") from error

    def evaluate(self) -> dict:
        """Tests the weights at hand and draws `confusion_matrix.png`; returns the result as plain values."""
        metrics = self.test()
        model = getattr(self.model, "module", self.model).backbone
        dataset = self.test_dataloader.dataset
        picture = Path(self.work_dir) / "confusion_matrix.png"
        plot_confusion(self.test_evaluator.metrics[0].confusion, dataset.classes, picture)
        unreadable = [hook.counts() for hook in self.hooks if isinstance(hook, UnreadableImagesHook)]
        return {
            "model": self.cfg.model.backbone.model_name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "dataset": type(dataset).__name__,
            "split": dataset.split,
            "images": int(self.test_evaluator.metrics[0].confusion.sum()),
            "unreadable": unreadable[0] if unreadable else {},
            **{key: round(float(value), 4) for key, value in metrics.items() if "time" not in key},
            "confusion_matrix": str(picture),
        }

    def test_checkpoint(self, checkpoint: str, img_size: int | None = None) -> dict:
        """Tests a checkpoint, at another image size than the model was built for if one is given."""
        self.prepare()
        self.load_checkpoint(checkpoint)
        model = getattr(self.model, "module", self.model).backbone
        if img_size is not None and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=(img_size, img_size))
        return {**self.evaluate(), "img_size": img_size}

    def train_and_test(self) -> dict:
        """Trains, then tests the best weights; returns the result as plain values."""
        self.prepare()
        self.train()
        info = self.message_hub.runtime_info
        best = Path(self.work_dir) / BEST
        checkpoint = best if best.is_file() else Path(self.work_dir) / LAST
        self.load_checkpoint(str(checkpoint))
        print_log(f"testing {checkpoint}", logger="current", level=logging.INFO)
        return {
            **self.evaluate(),
            "seed": self.seed,
            "epochs": self.max_epochs,
            "best_epoch": info.get("best_epoch"),
            "val_best": info.get("best_score"),
            "train_seconds": round(sum(record["seconds"] for record in history(self)), 1),
            "device": str(next(self.model.parameters()).device),
            "threads": torch.get_num_threads(),
            "checkpoint": str(checkpoint),
            "curves": str(Path(self.work_dir) / "curves.png"),
        }
