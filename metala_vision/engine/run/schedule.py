"""The plan of a run's rates: checks that a resumed run has the same plan, and that the plan ends with the training."""

import logging
from collections.abc import Mapping, Sequence

from mmengine.logging import print_log
from mmengine.runner import Runner

from metala_vision.errors import InputError

# Attributes that change while a scheduler goes on; the last three are those of ReduceOnPlateau.
PROGRESS = (
    *("optimizer", "last_step", "_global_step", "verbose", "base_values", "_last_value"),
    *("best", "num_bad_epochs", "cooldown_counter"),
)


def plan(runner: Runner) -> dict[str, object]:
    """What the rates follow from: the settings of every scheduler, and of every group of parameters."""
    found: dict[str, object] = {}
    stated = runner.cfg.get("param_scheduler") or []
    stated = [stated] if isinstance(stated, dict) else stated
    for i, scheduler in enumerate(runner.param_schedulers or []):
        for key, value in vars(scheduler).items():
            if key == "end" and "end" not in stated[i]:  # then it is that of the training, which may be moved
                continue
            if key not in PROGRESS and isinstance(value, bool | int | float | str | Sequence | Mapping):
                found[f"param_scheduler.{i}.{key}"] = _comparable(value)
    for i, group in enumerate(runner.optim_wrapper.optimizer.param_groups):
        for key in ("lr", "weight_decay"):
            found[f"{key} of group {i}"] = group.get(f"initial_{key}", group.get(key))
    return found


def _comparable(value: object) -> object:
    """A value with plain dicts and lists as containers, since a checkpoint does not keep their types."""
    if isinstance(value, Mapping):
        return {key: _comparable(member) for key, member in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_comparable(member) for member in value]
    return value


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


def warn_of_end(schedulers: dict | list | None, max_epochs: int, max_iters: int) -> None:
    """Logs a warning where the schedule ends with another epoch than the training; it says what to set instead.

    A scheduler that counts steps, as most warm-ups do, may end before the training but not after it.
    """
    if isinstance(schedulers, dict):
        stated = {"param_scheduler": schedulers}
    else:
        stated = {f"param_scheduler.{i}": scheduler for i, scheduler in enumerate(schedulers or [])}
    ending = {name: scheduler for name, scheduler in stated.items() if "end" in scheduler}
    by_epoch = {name: scheduler for name, scheduler in ending.items() if scheduler.get("by_epoch", True)}
    end = max((scheduler["end"] for scheduler in by_epoch.values()), default=max_epochs)
    if end != max_epochs:
        _warn(
            f"the schedule ends with epoch {end} and training with epoch {max_epochs}: if that is not meant, "
            f"{_advice(by_epoch, end, max_epochs)}"
        )
    by_step = {name: scheduler for name, scheduler in ending.items() if name not in by_epoch}
    end = max((scheduler["end"] for scheduler in by_step.values()), default=max_iters)
    if end <= max_iters:
        return
    if len(stated) > len(by_step):  # a warm-up before schedulers that count epochs
        what = "warm-up"
        late = [name for name, scheduler in by_step.items() if scheduler["end"] > max_iters]
        advice = f"set {' '.join(f'{name}.end={max(1, max_iters // 10)}' for name in late)}, from the start of a run"
    else:
        what, advice = "schedule", _advice(by_step, end, max_iters)
    _warn(f"the {what} ends with step {end} and training with step {max_iters}: if that is not meant, {advice}")


def _warn(text: str) -> None:
    print_log(text, logger="current", level=logging.WARNING)


def _advice(schedulers: dict[str, dict], end: int, last: int) -> str:
    """The settings that make a schedule fit the training.

    Only its end moves, unless the parts before would take more than half of the training: they then shrink with it.
    """
    stated = {
        f"{name}.{key}": scheduler[key]
        for name, scheduler in schedulers.items()
        for key in ("begin", "end")
        if scheduler.get(key)
    }
    inner = [value for value in stated.values() if value != end]
    scale = last / end if inner and 2 * max(inner) > last else 1.0
    fitted = {key: last if value == end else max(1, round(scale * value)) for key, value in stated.items()}
    if inner and max(fitted[key] for key, value in stated.items() if value != end) >= last:
        return "give the config a schedule without a warm-up by epochs, from the start of a run"
    changed = [f"{key}={value}" for key, value in fitted.items() if value != stated[key]]
    return f"set {' '.join(changed)}, from the start of a run"
