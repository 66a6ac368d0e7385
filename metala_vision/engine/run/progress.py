"""What a run reports while it goes on: the same value of a number in every place, and few lines on the console."""

import logging

from mmengine.hooks import LoggerHook
from mmengine.registry import HOOKS, LOG_PROCESSORS
from mmengine.runner import LogProcessor, Runner

from .optim import highest_rate

MOST_LINES = 3  # lines of a message on the console; the environment, the config and the list of hooks have hundreds
# Warnings of mmengine about its own calls, which nobody who trains can change.
OF_NO_USE = ('"FileClient" will be deprecated', '"HardDiskBackend" is the alias')


@LOG_PROCESSORS.register_module()
class RunLogProcessor(LogProcessor):
    """mmengine's log processor, with the numbers of history.json.

    It shows the values of one validation or test, where mmengine shows the mean of the last ten values of whatever has
    "loss" in its name. It shows the highest rate, where mmengine shows that of the first parameter group.
    """

    def get_log_after_iter(self, runner: Runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        tag, text = super().get_log_after_iter(runner, batch_idx, mode)
        steps = min(self.window_size, runner.iter + 1) if mode == "train" else 1
        return tag, f"{text}  (means of {steps} steps, lr of the last)" if steps > 1 else text

    def _collect_scalars(self, custom_cfg: list[dict], runner: Runner, mode: str, reserve_prefix: bool = False) -> dict:
        found = super()._collect_scalars(custom_cfg, runner, mode, reserve_prefix)
        if mode == "train":
            found = {
                key: value for key, value in found.items() if not key.endswith("base_lr")
            }  # the rate before a group's own factor
            return {**found, f"{mode}/lr" if reserve_prefix else "lr": highest_rate(runner.optim_wrapper)}
        for key, buffer in runner.message_hub.log_scalars.items():
            name = key.removeprefix(f"{mode}/")
            if key.startswith(f"{mode}/") and name not in ("time", "data_time"):
                found[key if reserve_prefix else name] = buffer.current()
        return found


@HOOKS.register_module()
class StepLoggerHook(LoggerHook):
    """Writes the means of the last steps, named steps/loss and so on, to the log, TensorBoard and the JSON lines.

    `HistoryHook` writes the values of an epoch to the same places, under the names of history.json. The axis of every
    number is the steps since the start of the run.
    """

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        ends = self.end_of_epoch(runner.train_dataloader, batch_idx)
        short = len(runner.train_dataloader) <= self.interval
        if not self.every_n_inner_iters(batch_idx, self.interval) and not (ends and (short or not self.ignore_last)):
            return
        tag, text = runner.log_processor.get_log_after_iter(runner, batch_idx, "train")
        runner.logger.info(text)
        tag = {f"steps/{key}": value for key, value in tag.items() if key != "iter"}
        runner.visualizer.add_scalars(tag, step=runner.iter + 1, file_path=self.json_log_path)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        _, text = runner.log_processor.get_log_after_epoch(runner, len(runner.val_dataloader), "val")
        runner.logger.info(text)


def keep_console_short(logger: logging.Logger) -> None:
    """Sends long messages to the log file alone, and drops those in `OF_NO_USE`."""
    logger.addFilter(lambda record: not record.getMessage().startswith(OF_NO_USE))
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.addFilter(_is_short)


def _is_short(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or record.getMessage().count("\n") < MOST_LINES
