"""mmengine's Runner with our defaults: a device by name, whole checkpoints, and every check before the first step."""

import logging
import os
import traceback
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

from metala_vision.data import LabelledImages
from metala_vision.errors import InputError

from .checkpoint import BEST, LAST, from_portable, read_checkpoint, to_portable
from .files import write_atomic
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
    """What registries and constructors say of a config's types and arguments, as InputError; our own bugs pass."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        origin: BaseException = error
        while origin.__context__ is not None:
            origin = origin.__context__
        place = traceback.extract_tb(origin.__traceback__)[-1].filename
        # A TypeError or KeyError counts where the registry calls and looks up, not where a constructor goes wrong.
        if isinstance(error, (KeyError, TypeError)) and f"{os.sep}registry{os.sep}" not in place:
            raise
        raise InputError(f"config: {error.args[0] if error.args else error}") from error


def _first_image(dataset: LabelledImages, where: str) -> torch.Tensor:
    """An image as the model will get it, out of the first hundred."""
    for index in range(min(len(dataset), 100)):
        try:
            sample = dataset[index]
        except InputError:
            raise
        except Exception as error:  # a transform is anybody's code
            raise InputError(f"data: the transform of {where} fails: {type(error).__name__}: {error}") from error
        if "image" in sample:
            return sample["image"]
    raise InputError(f"data: the first images of {where} are all unreadable: {sample['error']}")


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

    @property
    def classifier(self) -> nn.Module:
        """The model without the wrapper of distributed training."""
        return getattr(self.model, "module", self.model)

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
        model = self.classifier.backbone
        for dataset in datasets:
            where = f"{type(dataset).__name__} ({dataset.split})"
            if len(dataset.classes) != model.num_classes:
                raise InputError(
                    f"model: num_classes is {model.num_classes}, but the labels of {where} run from 0 to "
                    f"{len(dataset.classes) - 1}; set model.backbone.num_classes={len(dataset.classes)}"
                )
            if dataset.classes != datasets[0].classes:
                raise InputError(f"data: the classes of {where} differ from those of {datasets[0].split}")
            image = _first_image(dataset, where)
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

    def call_hook(self, fn_name: str, **kwargs) -> None:
        super().call_hook(fn_name, **kwargs)
        if fn_name == "before_save_checkpoint":  # after every hook has added what is its own
            to_portable(kwargs["checkpoint"])

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        """Loads the weights of a checkpoint file, nothing of which is run, if its keys are exactly the model's.

        Raises:
            InputError: no such file, no checkpoint, or one of another model, with the keys.
        """
        checkpoint = read_checkpoint(filename)
        from_portable(checkpoint, self.classifier)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        self.classifier.load_state_dict(checkpoint["state_dict"])
        self._has_loaded = True
        print_log(f"loaded {filename}", logger="current", level=logging.INFO)
        return checkpoint

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Continues the run of a checkpoint, and keeps the best weights that lie beside it."""
        super().resume(filename, *args, **kwargs)
        best, beside = Path(self.work_dir) / BEST, Path(filename).parent / BEST
        if not best.is_file() and beside.is_file():
            write_atomic(best, beside.read_bytes())
        if not best.is_file():  # its score would keep lesser weights from being saved as the best
            for key in ("best_score", "best_epoch"):
                self.message_hub.runtime_info.pop(key, None)

    def evaluate(self) -> dict:
        """Tests the weights at hand and draws `confusion_matrix.png`; returns the result as plain values."""
        metrics = self.test()
        model = self.classifier.backbone
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
        model = self.classifier.backbone
        if img_size is not None and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=(img_size, img_size))
        return {**self.evaluate(), "img_size": img_size}

    def train_and_test(self) -> dict:
        """Trains, then tests the best weights; returns the result as plain values."""
        self.prepare()
        self._warn_of_schedule()
        self.train()
        info = self.message_hub.runtime_info
        checkpoint = Path(self.work_dir) / (BEST if "best_epoch" in info else LAST)
        self.load_checkpoint(str(checkpoint))
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

    def _warn_of_schedule(self) -> None:
        ends = [s["end"] for s in self.cfg.get("param_scheduler") or [] if s.get("by_epoch", True) and "end" in s]
        if ends and max(ends) != self.max_epochs:
            print_log(
                f"the schedule ends with epoch {max(ends)} and training with epoch {self.max_epochs}: if that is not "
                f"meant, set param_scheduler.{len(self.cfg.param_scheduler) - 1}.end={self.max_epochs}",
                logger="current",
                level=logging.WARNING,
            )
