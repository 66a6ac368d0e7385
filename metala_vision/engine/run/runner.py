"""mmengine's Runner with our defaults: a device by name, whole checkpoints, and every check before the first step."""

import functools
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import barrier, is_main_process
from mmengine.logging import MMLogger, print_log
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import EpochBasedTrainLoop, LogProcessor, Runner
from torch import nn
from torch.utils.data import Dataset

from metala_vision.description import KEY, read_description
from metala_vision.engine.tasks.base import TaskModel, names_of, task_of
from metala_vision.errors import InputError
from metala_vision.files import write_atomic
from metala_vision.profiling.environment import environment

from .agreement import check_goes_on
from .checkpoint import BEST, LAST, LastBestCheckpointHook, from_portable, read_checkpoint, to_portable
from .config import config_errors
from .distributed import DistributedTask
from .hooks import UnreadableImagesHook, history
from .image_sizes import training_sizes
from .progress import keep_console_short
from .schedule import check_same_plan, plan, warn_of_end
from .settings import warn_of_changes
from .work_dir import check_shared

DEFAULT_HOOKS = dict(
    logger=dict(type="StepLoggerHook", interval=20),
    step_seed=dict(type="StepSeedHook"),
    accumulation=dict(type="AccumulationHook"),
    unreadable=dict(type="UnreadableImagesHook"),
    history=dict(type="HistoryHook"),
    checkpoint=dict(type="LastBestCheckpointHook"),
    shared_buffers=dict(type="SharedBuffersHook"),
)


@RUNNERS.register_module()
class VisionRunner(Runner):
    """Trains, validates and tests a `TaskModel`.

    Beyond mmengine's arguments its config takes `device`: "auto", "cpu", "cuda", "cuda:1", "mps". mmengine's `sync_bn`
    is for GPUs.
    """

    is_training = False
    optim_wrapper: Any  # mmengine's attribute: a dict, or an OptimWrapper once it is built; None in a test

    @classmethod
    def from_cfg(cls, cfg: Config) -> "VisionRunner":
        """A runner for a config.

        Raises:
            InputError: a type that is not registered, or an argument it does not take.
        """
        with config_errors():
            return super().from_cfg(cfg)

    @property
    def task(self) -> TaskModel:
        """The model without the wrapper of distributed training."""
        return task_of(self.model)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        super().register_default_hooks({**DEFAULT_HOOKS, **(hooks or {})})

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        keep_console_short(logger)
        return logger

    def build_log_processor(self, log_processor: dict) -> LogProcessor:
        if isinstance(log_processor, dict):
            log_processor = {"type": "RunLogProcessor", **log_processor}
        return super().build_log_processor(log_processor)

    def setup_env(self, env_cfg: dict) -> None:
        with warnings.catch_warnings():
            # Every process would say it, where torchrun has just said the same of OMP_NUM_THREADS
            module = "mmengine.utils.dl_utils.setup_env"
            warnings.filterwarnings("ignore", "Setting MKL_NUM_THREADS", UserWarning, module)
            super().setup_env(env_cfg)

    def _log_env(self, env_cfg: dict) -> None:
        """Logs the environment of a training run alone: a test would bury its table under it."""
        if self._train_dataloader is not None:
            super()._log_env(env_cfg)

    def build_optim_wrapper(self, optim_wrapper: dict | OptimWrapper) -> OptimWrapper:
        if isinstance(optim_wrapper, dict):
            optim_wrapper = {"constructor": "TimmOptimConstructor", **optim_wrapper}
        with config_errors():
            return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler: dict | list) -> list:
        try:
            with config_errors():
                return super().build_param_scheduler(scheduler)
        except InputError as error:
            if "end should be larger than begin" not in str(error):
                raise
            raise InputError(
                f"{error}: a part of the schedule has no step left. With so few epochs shorten the warm-up too, by "
                f"param_scheduler.0.end and param_scheduler.1.begin, or leave it out"
            ) from error

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Scales the rates by the images of an optimiser step over `base_batch_size`, if enabled; logs the rate."""
        lr = optim_wrapper.optimizer.defaults["lr"]
        batch, processes, sums = self.step_images()
        images = batch * processes * sums
        parts = f"{images} images a step: {batch} x {processes} processes x {sums} accumulated"
        scaling = auto_scale_lr or {}
        if not scaling.get("enable", False):
            print_log(f"learning rate {lr:g} ({parts})", logger="current", level=logging.INFO)
            return
        base = scaling["base_batch_size"]
        for group in optim_wrapper.optimizer.param_groups:
            group["lr"] *= images / base
        if optim_wrapper.base_param_settings is not None:  # None where there is one group
            optim_wrapper.base_param_settings["lr"] *= images / base
        print_log(
            f"learning rate {lr * images / base:g}: {lr:g} for {base} images, scaled to {parts}",
            logger="current",
            level=logging.INFO,
        )

    def step_images(self) -> tuple[int, int, int]:
        """Images of a batch, processes, batches that are accumulated."""
        return self.train_dataloader.batch_sampler.batch_size, self.world_size, self.optim_wrapper._accumulative_counts

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        device = self.cfg.get("device", "auto")
        model = model.to(get_device() if device == "auto" else device)
        place = next(model.parameters()).device
        print_log(f"device {place}, processes: {self.world_size}", logger="current", level=logging.INFO)
        if not self.distributed:
            return model
        if (sync_bn := self.cfg.get("sync_bn")) is not None and device.startswith("cuda"):  # there is none for CPUs
            with config_errors():
                model = convert_sync_batchnorm(model, sync_bn)
        device_ids = [torch.device(device)] if device.startswith("cuda") else None
        return DistributedTask(model, device_ids=device_ids)

    @functools.cached_property
    def description(self) -> dict:
        """What checkpoints say of the model and its images."""
        parts = ((self._test_loop, "test_loop"), (self._val_loop, "val_loop"), (self._train_loop, "train_loop"))
        datasets = [getattr(self, name).dataloader.dataset for config, name in parts if config is not None]
        return self.task.describe(train=datasets[-1], evaluation=datasets[0])

    def dump_config(self) -> None:
        """Keeps the config that a run began with: that of a resumed run would start from the resumed checkpoint."""
        if not self._resume:
            super().dump_config()
        elif is_main_process():
            own = Path(self.work_dir) / Path(self.cfg.filename or f"{self.timestamp}.py").name
            beside = Path(self._load_from).parent / own.name if self._load_from else own
            if own.exists():
                return
            if beside.exists():
                shutil.copyfile(beside, own)
            else:
                first = {key: value for key, value in self.cfg.items() if key not in ("resume", "load_from")}
                Config(first).dump(own)

    def build_parts(self) -> list[Dataset]:
        """Builds loops, data and optimiser; returns the datasets of the loops that the config has.

        Raises:
            InputError: what cannot be built.
        """
        if not is_main_process():
            barrier()  # one process downloads and unpacks what is not there
        with config_errors():  # the first use of a loop builds it, with its data
            parts = [(self._train_loop, "train_loop"), (self._val_loop, "val_loop"), (self._test_loop, "test_loop")]
            loops = [getattr(self, name) for config, name in parts if config is not None]
        if is_main_process():
            barrier()
        if self.optim_wrapper is not None:
            self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        return [loop.dataloader.dataset for loop in loops]

    def prepare(self) -> None:
        """Builds loops, data and optimiser and checks that they fit the model.

        Raises:
            InputError: what does not fit.
        """
        if self._train_loop is not None and self._load_from is not None and not Path(self._load_from).is_file():
            raise InputError(
                f"load_from: no file {self._load_from}; give another checkpoint, or load_from=None for a start from "
                f"scratch"
            )
        self.task.check(self.build_parts())
        if self._train_loop is not None:
            self._check_training()
            if not self._resume:
                self.task.start(names_of(self.train_dataloader.dataset))
            _ = self.description  # what cannot be written shows now

    def _check_training(self) -> None:
        """Checks what would fail hours later: no checkpoint hook, or a best checkpoint by a score that nobody gives."""
        if not isinstance(self.train_loop, EpochBasedTrainLoop):
            raise InputError(f"train_cfg: got a {type(self.train_loop).__name__}, expected epochs (by_epoch=True)")
        hooks = [hook for hook in self.hooks if isinstance(hook, LastBestCheckpointHook)]
        if not hooks:
            raise InputError("default_hooks.checkpoint: expected a LastBestCheckpointHook, which --resume needs")
        if len(self.train_dataloader) == 0:
            images, batch = len(self.train_dataloader.dataset), self.train_dataloader.batch_sampler.batch_size
            raise InputError(
                f"train_dataloader: {images} images in {self.world_size} processes make no whole batch of {batch}, and "
                f"what is left over is dropped; lower its batch_size, or set train_dataloader.drop_last=False"
            )
        if sizes := training_sizes(self.train_dataloader):
            self.task.check_sizes(sizes)
        if self._val_loop is None:
            return
        dataset = self.val_dataloader.dataset
        names = [getattr(metric, "names", lambda _: None)(dataset) for metric in self.val_loop.evaluator.metrics]
        if None not in names:  # metrics of others show their names at the first validation
            known = [name for some in names for name in some or ()]
            for hook in hooks:
                if hook.save_best is not None and hook.save_best not in known:
                    raise InputError(
                        f"default_hooks.checkpoint.save_best: got {hook.save_best!r}, expected one of {tuple(known)}"
                    )

    def train(self) -> nn.Module:
        self.is_training = True
        try:
            with warnings.catch_warnings():
                # Schedules go by batches; while gradients accumulate they are ahead of the optimiser, as they should.
                module = "mmengine.optim.scheduler.param_scheduler"
                text = "Detected call of `scheduler.step.*before `optimizer.step"
                warnings.filterwarnings("ignore", text, UserWarning, module)
                return super().train()
        finally:
            self.is_training = False

    def call_hook(self, fn_name: str, **kwargs) -> None:
        super().call_hook(fn_name, **kwargs)
        if fn_name == "before_train":  # the last that is said before the first step
            warn_of_end(self.cfg.get("param_scheduler"), self.max_epochs, self.max_iters)
        if fn_name == "before_save_checkpoint":  # after every hook has added what is its own
            kwargs["checkpoint"][KEY] = self.description
            to_portable(kwargs["checkpoint"], self.task.prefix)

    def load_checkpoint(self, filename: str, *args, weights: str = "raw", **kwargs) -> dict:
        """Loads the weights of a checkpoint file, nothing of which is run, if its keys are exactly the model's.

        Args:
            weights: "raw", "ema" for their moving average, or "auto" for the average where there is one.

        Raises:
            InputError: no such file, no checkpoint, no average in it, or one of another model, with the keys.
        """
        checkpoint = read_checkpoint(filename)
        if self.is_training:
            check_goes_on(read_description(checkpoint), self.train_dataloader.dataset, filename, self._resume)
        used = from_portable(checkpoint, self.task, weights, resume=self.is_training and self._resume)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        self.task.load_state_dict(checkpoint["state_dict"])
        self._has_loaded = True
        self.resumed_meta = checkpoint.get("meta", {})
        self.resumed_schedulers = len(checkpoint.get("param_schedulers") or ())
        print_log(f"loaded {filename} ({used} weights)", logger="current", level=logging.INFO)
        return {**checkpoint, "weights": used}

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Continues the run of a checkpoint, and keeps the best weights that lie beside it.

        Raises:
            InputError: the run has other rates or images per step than the config: it would be another run.
        """
        wanted = plan(self)
        super().resume(filename, *args, **kwargs)
        batch, processes, sums = self.step_images()
        former = self.resumed_meta.get("step_images")
        if former is not None and (former[0] * former[1], former[2]) != (batch * processes, sums):
            raise InputError(
                f"--resume: the run of {filename} took {former[0]} images x {former[1]} processes x {former[2]} "
                f"accumulated a step, and this one would take {batch} x {processes} x {sums}; make them alike"
            )
        if self.epoch > self.max_epochs:
            raise InputError(
                f"--resume: the run of {filename} has had {self.epoch} epochs, and train_cfg.max_epochs is "
                f"{self.max_epochs}; give it more, or test its weights with tools/test.py"
            )
        warn_of_changes(self.cfg, self.resumed_meta, filename)
        wanted["param_schedulers"] = len(self.param_schedulers or ())
        check_same_plan(wanted, plan(self) | {"param_schedulers": self.resumed_schedulers}, filename)
        best, beside = Path(self.work_dir) / BEST, Path(filename).parent / BEST
        if is_main_process() and not best.is_file() and beside.is_file():
            write_atomic(best, beside.read_bytes())
        barrier()
        if not best.is_file():  # the score of a missing file would keep worse weights from being saved
            for key in ("best_score", "best_epoch"):
                self.message_hub.runtime_info.pop(key, None)

    def evaluate(self) -> dict:
        """Tests the current weights and writes the reports of the metrics; returns the result as plain values."""
        metrics = self.test()
        dataset = self.test_dataloader.dataset
        reports: dict = {}
        for metric in self.test_evaluator.metrics:
            reports |= metric.report(dataset, Path(self.work_dir))
        unreadable = [hook.counts() for hook in self.hooks if isinstance(hook, UnreadableImagesHook)]
        return {
            "model": self.cfg.model.backbone.model_name,
            "parameters": sum(p.numel() for p in self.task.net.parameters()),
            "dataset": type(dataset).__name__,
            "split": dataset.split,
            "unreadable": unreadable[0] if unreadable else {},
            **{key: round(float(value), 4) for key, value in metrics.items() if "time" not in key},
            **reports,
        }

    def train_and_test(self) -> dict:
        """Trains, then tests the best weights; returns the result as plain values."""
        self.prepare()
        check_shared(self.work_dir)
        parts = ((self._train_loop, "to train"), (self._val_loop, "to validate"), (self._test_loop, "to test"))
        counts = [f"{len(loop.dataloader.dataset)} {what}" for loop, what in parts if loop is not None]
        dataset = self.train_dataloader.dataset
        print_log(
            f"data: {type(dataset).__name__}, {len(dataset.classes)} classes; images: {', '.join(counts)}",
            logger="current",
            level=logging.INFO,
        )
        where = f"the run is kept in {self.work_dir}, its whole log in {Path(self.log_dir).name}"
        print_log(where, logger="current", level=logging.INFO)
        device = str(next(self.model.parameters()).device)
        trained_with = environment(device)  # now: hours later the sources may be others
        self.train()
        barrier()  # one process writes the checkpoints that all read
        info = self.message_hub.runtime_info
        checkpoint = Path(self.work_dir) / (BEST if "best_epoch" in info else LAST)
        used = self.load_checkpoint(str(checkpoint), weights="auto")["weights"]
        seconds = [record["seconds"] for record in history(self)]
        return {
            **self.evaluate(),
            "seed": self.seed,
            "epochs": self.max_epochs,
            "best_epoch": info.get("best_epoch"),
            "val_best": info.get("best_score"),
            "weights": used,
            "train_seconds": round(sum(seconds), 1),
            "seconds_per_epoch": round(sorted(seconds)[len(seconds) // 2], 1),
            "device": device,
            "precision": str(getattr(self.optim_wrapper, "dtype", "float32")).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "processes": self.world_size,
            "environment": trained_with,
            "checkpoint": str(checkpoint),
            "curves": str(Path(self.work_dir) / "curves.png"),
        }
