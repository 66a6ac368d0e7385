"""A moving average of the weights: validation uses it in their place, and checkpoints hold it beside them."""

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from timm.utils import ModelEmaV3

from metala_vision.errors import InputError

from .checkpoint import EMA_KEY
from .distributed import share_buffers


@HOOKS.register_module()
class ModelEmaHook(Hook):
    """Keeps timm's ModelEmaV3 of the trained model.

    Validation during training uses the average. Checkpoints hold it as `state_dict_ema`, which timm and
    `tools/test.py` prefer to the weights themselves.

    Args:
        decay: share of the former average that one optimiser step keeps, in (0, 1).
        use_warmup: let the decay grow from 0, so that the average of a short run is not that of its first weights.

    Raises:
        InputError: a decay out of range.
    """

    def __init__(self, decay: float = 0.9999, use_warmup: bool = False):
        if not 0 < decay < 1:
            raise InputError(f"decay: got {decay!r}, expected a number in (0, 1)")
        self.decay = decay
        self.use_warmup = use_warmup
        self.restored = False

    def before_run(self, runner: Runner) -> None:
        if runner.is_training:
            self.start(runner)

    def start(self, runner: Runner) -> None:
        """Starts the average from the current weights."""
        self.ema = ModelEmaV3(runner.task.net, decay=self.decay, use_warmup=self.use_warmup)
        self.ema.requires_grad_(False)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner.is_training and EMA_KEY in checkpoint:
            self.ema.module.load_state_dict(checkpoint[EMA_KEY])
            self.restored = True

    def before_train(self, runner: Runner) -> None:
        if not self.restored:  # the average starts from the weights that were loaded or initialised
            self.ema.set(runner.task.net)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        if runner.optim_wrapper.should_update():  # this step has updated the weights; others only add up gradients
            sums = runner.optim_wrapper._accumulative_counts
            earlier = runner.epoch * -(-len(runner.train_dataloader) // sums)
            self.ema.update(runner.task.net, step=earlier + -(-(batch_idx + 1) // sums))

    def after_train_epoch(self, runner: Runner) -> None:
        share_buffers(self.ema.module)

    def before_val_epoch(self, runner: Runner) -> None:
        self._swap(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._swap(runner)

    @torch.no_grad()
    def _swap(self, runner: Runner) -> None:
        """Swaps weights and averages in place, so that compiled code and the optimiser keep the same tensors."""
        if not runner.is_training:
            return
        ours, averages = runner.task.net.state_dict(), self.ema.module.state_dict()
        for key, value in ours.items():
            former = value.clone()
            value.copy_(averages[key])
            averages[key].copy_(former)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint["ema"] = dict(decay=self.decay, use_warmup=self.use_warmup)
        checkpoint[EMA_KEY] = {key: value.cpu() for key, value in self.ema.module.state_dict().items()}
