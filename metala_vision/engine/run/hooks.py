"""What a run of ours adds to mmengine's: reproducible epochs, a record of them, and a limit on unreadable images."""

import logging
import random
import time

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from metala_vision.engine.metrics.plots import plot_history
from metala_vision.errors import InputError
from metala_vision.files import write_json

from .checkpoint import HISTORY
from .distributed import share_buffers
from .optim import highest_rate


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seeds this process anew at each step from (seed, rank, step).

    Drop path and dropout of a step are then the same in an uninterrupted run and in a resumed one. Seeding once per
    epoch would not do: a data loader draws from the same stream, and how often depends on whether its workers are new.
    """

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        state = np.random.SeedSequence([runner.seed or 0, get_rank(), runner.iter]).generate_state(1)
        torch.manual_seed(int(state[0]))
        np.random.seed(int(state[0]))  # noqa: NPY002  (timm's mixup draws from it)
        random.seed(int(state[0]))


@HOOKS.register_module()
class SharedBuffersHook(Hook):
    """Gives every process, after each epoch, the buffers of the first one, which writes the checkpoints.

    Each process has seen other images: with running means of its own it would validate another model than is saved.
    """

    priority = "VERY_HIGH"

    def after_train_epoch(self, runner: Runner) -> None:
        share_buffers(runner.task.net)


@HOOKS.register_module()
class AccumulationHook(Hook):
    """Makes gradient accumulation begin anew with each epoch; the last sum of an epoch may be of fewer batches.

    mmengine accumulates across the end of an epoch: a checkpoint there would need the gradients of every process.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        wrapper = runner.optim_wrapper
        wrapper._inner_count = 0
        wrapper._max_counts = len(runner.train_dataloader)
        wrapper._remainder_counts = wrapper._max_counts % wrapper._accumulative_counts


@HOOKS.register_module()
class HistoryHook(Hook):
    """Writes `history.json`, one record per epoch, and draws it as `curves.png`.

    The records travel in the checkpoint, so that the curves of a resumed run are whole. TensorBoard and mmengine's JSON
    lines get the same numbers under the same names, at the step that ends the epoch.

    Args:
        check_interval: steps from one check of the losses to the next. A loss that is not finite ends the run; every
            check waits for the GPU.

    Raises:
        InputError: a check_interval below 1, and during the run a loss that is not finite: the message names its step,
            and no later checkpoint is written.
    """

    def __init__(self, check_interval: int = 20):
        if check_interval < 1:
            raise InputError(f"check_interval: got {check_interval!r}, expected at least 1 step")
        self.check_interval = check_interval

    def before_train_epoch(self, runner: Runner) -> None:
        self.start = time.perf_counter()
        self.losses: list[torch.Tensor] = []
        # In every step mmengine copies all that it has logged: without a limit, milliseconds a step after some hundred
        # epochs.
        processor = runner.log_processor
        windows = [processor.window_size, *(custom.get("window_size", 1) for custom in processor.custom_cfg)]
        if "global" in windows:
            return
        longest = max(len(runner.train_dataloader), *(window for window in windows if isinstance(window, int)))
        for key, buffer in runner.message_hub.log_scalars.items():
            if key.startswith("train/"):
                buffer.max_length = longest

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        outputs = outputs or {}
        self.losses.append(outputs["loss"].detach())
        self.rate = highest_rate(runner.optim_wrapper)  # of this step: schedulers change it afterwards
        if len(self.losses) % self.check_interval == 0:
            self._check(runner, runner.iter + 1)

    def _check(self, runner: Runner, steps: int) -> torch.Tensor:
        """The losses of this epoch, which must all be finite; `steps` counts the steps since the start of the run."""
        loss = torch.stack(self.losses).float()
        wrong = (~loss.isfinite()).nonzero()
        if len(wrong):
            step = steps - len(loss) + int(wrong[0]) + 1
            raise InputError(
                f"training: the loss is {loss[wrong[0]].item()} at step {step} (epoch {runner.epoch + 1}); "
                f"last.pth is of the epoch before. A lower rate or gradient clipping may help"
            )
        return loss

    def after_train_epoch(self, runner: Runner) -> None:
        loss = self._check(runner, runner.iter)
        record = {
            "epoch": runner.epoch + 1,
            "iter": runner.iter,
            "lr": self.rate,
            "train/loss": loss.mean().item(),
            "seconds": round(time.perf_counter() - self.start, 3),
        }
        self._update(runner, [*history(runner), record], record)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        records = history(runner)
        if getattr(runner, "is_training", False) and records:
            scores = {f"val/{key}": value for key, value in (metrics or {}).items()}
            self._update(runner, [*records[:-1], {**records[-1], **scores}], scores)

    def _update(self, runner: Runner, records: list[dict], new: dict) -> None:
        """Keeps the records, writes history.json, and sends the new values to TensorBoard and the JSON lines."""
        runner.message_hub.update_info("history", records)
        scalars = {key: value for key, value in new.items() if key != "iter"}
        runner.visualizer.add_scalars(scalars, step=runner.iter, file_path=f"{runner.timestamp}.json")
        if is_main_process():
            try:
                write_json(f"{runner.work_dir}/{HISTORY}", records)
            except OSError as error:  # the checkpoint, which holds the records too, decides whether the run can go on
                print_log(f"history.json could not be written: {error}", logger="current", level=logging.WARNING)

    def after_train(self, runner: Runner) -> None:
        if is_main_process() and history(runner):
            plot_history(history(runner), f"{runner.work_dir}/curves.png")


def history(runner: Runner) -> list[dict]:
    """The records of the epochs so far."""
    return list(runner.message_hub.runtime_info.get("history", []))


@HOOKS.register_module()
class UnreadableImagesHook(Hook):
    """Logs each unreadable image once, and ends the run when there are too many.

    Args:
        max_share: share of the images of a split that may be unreadable, in [0, 1].

    Raises:
        InputError: a share out of range, and during the run more unreadable images than it allows.
    """

    def __init__(self, max_share: float = 0.01):
        if not 0 <= max_share <= 1:
            raise InputError(f"max_share: got {max_share!r}, expected a number in [0, 1]")
        self.max_share = max_share
        self.seen: dict[str, set[str]] = {}
        self.pending: set[str] = set()  # met in this process, not known to the others yet

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._meet(runner.train_dataloader.dataset, data_batch)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._meet(runner.val_dataloader.dataset, data_batch)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._meet(runner.test_dataloader.dataset, data_batch)

    def after_train_epoch(self, runner: Runner) -> None:
        self._share(runner.train_dataloader.dataset)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._share(runner.val_dataloader.dataset)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._share(runner.test_dataloader.dataset)

    def counts(self) -> dict[str, int]:
        """Number of unreadable images of each split; those that other processes met count from the end of an epoch."""
        return {split: len(messages) for split, messages in self.seen.items()}

    def _meet(self, dataset, data_batch: dict | None) -> None:
        data_batch = data_batch or {}
        seen = self.seen.setdefault(dataset.split, set())
        new = set(data_batch["errors"]) - seen
        self.pending |= new
        self._note(seen, new)
        self._check(dataset)

    def _share(self, dataset) -> None:
        """Tells every process the unreadable images of the others, since only the first one writes the log."""
        seen = self.seen.setdefault(dataset.split, set())
        others = set().union(*all_gather_object(self.pending)) - seen
        self.pending.clear()
        self._note(seen, others)
        self._check(dataset)

    @staticmethod
    def _note(seen: set[str], new: set[str]) -> None:
        for message in sorted(new):
            seen.add(message)
            print_log(f"skipped an unreadable image: {message}", logger="current", level=logging.WARNING)

    def _check(self, dataset) -> None:
        seen = self.seen[dataset.split]
        if len(seen) > self.max_share * len(dataset):
            raise InputError(
                f"data: {len(seen)} of the {len(dataset)} images of the {dataset.split} split cannot be read, more "
                f"than max_share={self.max_share:g}; the first: {min(seen)}. Mend or remove them, or raise "
                f"default_hooks.unreadable.max_share"
            )
