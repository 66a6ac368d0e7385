"""The plan of a run's rates: that a resumed run has the same one, and that it ends with the training."""

import logging

from mmengine.logging import print_log
from mmengine.runner import Runner

from metala_vision.errors import InputError

PROGRESS = ("last_step", "_global_step")


def plan(runner: Runner) -> dict[str, object]:
    """What the rates will be made of: the numbers of every scheduler, and of every group of parameters."""
    found: dict[str, object] = {}
    for i, scheduler in enumerate(runner.param_schedulers or []):
        if hasattr(scheduler, "patience"):  # what it does depends on the scores: its state is no plan
            continue
        numbers = {key: value for key, value in vars(scheduler).items() if isinstance(value, bool | int | float | str)}
        found |= {f"param_scheduler.{i}.{key}": value for key, value in numbers.items() if key not in PROGRESS}
    for i, group in enumerate(runner.optim_wrapper.optimizer.param_groups):
        found[f"lr of group {i}"] = group.get("initial_lr", group["lr"])
        found[f"weight_decay of group {i}"] = group.get("weight_decay")
    return found


def check_same_plan(wanted: dict[str, object], resumed: dict[str, object], filename: str) -> None:
    """Raises InputError where a resumed run, which goes on by its own plan, would not do what the config asks for."""
    keys = [key for key in wanted | resumed if wanted.get(key) != resumed.get(key)]
    if keys:
        differences = "; ".join(f"{key} is {resumed.get(key)} and not {wanted.get(key)}" for key in keys[:5])
        raise InputError(
            f"--resume: the run of {filename} has other rates than the config: {differences}"
            f"{'; ...' if keys[5:] else ''}. A run goes on as it began. To go on otherwise begin another one from its "
            f"weights, with --cfg-options load_from={filename} and a new --work-dir"
        )


def warn_of_end(schedulers: dict | list | None, max_epochs: int) -> None:
    """Logs a warning where the last scheduler ends with another epoch than the training."""
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers or []
    ends = [s["end"] for s in schedulers if s.get("by_epoch", True) and "end" in s]
    if ends and max(ends) != max_epochs:
        print_log(
            f"the schedule ends with epoch {max(ends)} and training with epoch {max_epochs}: if that is not meant, set "
            f"param_scheduler.{len(schedulers) - 1}.end={max_epochs}, from the start of a run",
            logger="current",
            level=logging.WARNING,
        )
