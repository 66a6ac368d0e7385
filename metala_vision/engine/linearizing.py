"""A pretrained ViT made linear in stages, with what each has brought: what tools/linearize.py calls."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from metala_vision.data import collate_images
from metala_vision.description import plain
from metala_vision.errors import InputError
from metala_vision.files import write_json

from .comparison import read_json
from .labelled import Labelled
from .metrics.feature_plots import plot_features
from .metrics.size_plots import plot_accuracy_against_time
from .run.checkpoint import LAST, read_checkpoint
from .run.config import load_config
from .run.options import apply_train_options, set_data_root, set_num_classes
from .run.runner import VisionRunner
from .run.settings import config_beside
from .tasks.linearization import STAGES
from .teacher_and_model import compare_features, compare_times, merged

START = "start"  # what stands where no stage has been trained
CALIBRATED, SETTINGS = "calibrated.pth", "settings.json"
TASK = "task"  # a third stage, by labels
LENGTHS = {"blocks": 1, "features": 1, TASK: 5}  # epochs
RATES = {"blocks": 1e-3, "features": 1e-4, TASK: 1e-4}
# Options that the stages set themselves, and those that the one with labels has no use for.
OWN = {
    **dict.fromkeys(("train_cfg.max_epochs", "param_scheduler.1.end"), "--epochs"),
    "optim_wrapper.optimizer.lr": "--lr",
    **dict.fromkeys(("model.stage", "model.init_from"), "--stages"),
}
UNLABELLED = ("model.teacher", "model.calibration")
SMALLEST = 8  # side of an image in pixels
SHOWN = 6  # pictures whose features are drawn


def linearize_in_stages(
    configs: tuple[str, str],
    options: dict[str, Any],
    data_root: str,
    out: str | Path,
    stages: Sequence[str] = STAGES,
    epochs: Sequence[int] | None = None,
    rates: Sequence[float] | None = None,
    labels: str | None = None,
    sizes: Sequence[int] = (),
    timed: Sequence[int] = (),
    device: str = "auto",
    seed: int | None = None,
    say: Callable[[str], None] = print,
) -> dict:
    """Calibrates, then trains stage after stage, each from the weights of the one before it.

    Args:
        configs: one of configs/linearize/ for the stages without labels, and one for the stage with them.
        options: overrides of them, such as {"model.backbone.teacher": "vit_small_patch16_224"}.
        data_root: a folder of images, at any depth.
        out: a folder; each stage has its run in a folder of its name there. Stages that have ended are not run again.
        stages: out of "blocks", "features" and "task", in their order.
        epochs: of each stage; None is `LENGTHS`.
        rates: learning rate of each stage; None is `RATES`.
        labels: a folder with a subfolder per class, for neighbours and a linear probe on features, and for the stage
            "task"; None for neither.
        sizes: sides of images at which a linear probe tells what the features of teacher and model are worth.
        timed: sides at which the time of an image is measured, beside those.
        device: as for tools/train.py.
        seed: as for tools/train.py.
        say: is told what is going on.

    Returns:
        `model`, the checkpoint that the last stage was tested with; `stages`, a row for the start and for each stage:
        `stage`, `seconds` of its training, `cosine` and
        `prefix_cosine`, or `top1` of the stage "task", and with `labels` the scores of `Labelled`, the teacher's
        likewise in a row of its own; and `sizes`, the rows of `teacher_and_model`. Also in `out/stages.json`, as far as
        it has come; `out/features.png` shows the features, `out/accuracy_and_time.png` the probe over the time.

    Raises:
        InputError: what does not fit, before anything is trained.
    """
    lengths, steps = _for_each("--epochs", stages, epochs, LENGTHS), _for_each("--lr", stages, rates, RATES)
    if taken := [key for key in options if key in OWN]:
        raise InputError(f"--cfg-options: got {taken[0]}, which {OWN[taken[0]]} sets for each stage")
    if any(length < 1 for length in lengths) or any(rate <= 0 for rate in steps):
        raise InputError(f"--epochs, --lr: got {lengths} and {steps}, expected 1 epoch or more and rates above 0")
    if small := [size for size in (*sizes, *timed) if size < SMALLEST]:
        raise InputError(f"--sizes, --timed: got {small[0]}, expected {SMALLEST} pixels or more")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("WORLD_SIZE is above 1: several processes train a stage by tools/train.py and its config")
    if (TASK in stages or sizes) and labels is None:
        raise InputError(
            f"--labels: expected a folder of labelled images for {'--sizes' if sizes else '--stages task'}"
        )
    out = Path(out)
    found: dict[str, Any] = {"stages": [], "sizes": [], "model": str(out / START / CALIBRATED)}
    rows = found["stages"]
    shared: dict[str, Any] = dict(data_root=data_root, device=device, seed=seed)
    start = _start(out / START, configs[0], options, shared)
    teacher = start.task.teacher.to(next(start.task.backbone.parameters()).device)
    examples = None if labels is None else Labelled(labels, start)
    made, before = {}, out / START / CALIBRATED  # all of them now: what does not fit is to cost no training
    _check_chain(out, stages)
    for stage, length, rate in zip(stages, lengths, steps):
        which = dict(shared, options=options, epochs=length, rate=rate, before=str(before))
        if stage == TASK and examples is not None:
            made[stage] = _task_config(out / stage, configs[1], examples, **which)
        else:
            made[stage] = _config(out / stage, configs[0], stage, **which)
        before = out / stage / LAST
    pictures = _pictures(start)
    shown = {"teacher": _patches(teacher, pictures), START: _patches(start.task.backbone, pictures)}

    def note(row: dict) -> None:
        rows.append(row)
        say(render_row(row))
        write_json(out / "stages.json", found)

    if examples is not None:
        note(dict(stage="teacher", seconds=None, cosine=100.0, prefix_cosine=100.0) | examples.scores(teacher))
    note(dict(stage=START, seconds=0.0) | _scores(start, start.test(), examples))
    found["sizes"] = compare_times(teacher, start.task.backbone, [*sizes, *timed])
    for row in found["sizes"]:
        if "times_faster" in row:
            say(f"{row['size']} pixels: {row['milliseconds']:.1f} ms an image, {row['times_faster']:.2f} times as fast")
    last = start
    for stage, config in made.items():
        last = VisionRunner.from_cfg(config)
        result = last.train_and_test()
        write_json(out / stage / "result.json", result)
        found["model"] = result["checkpoint"]
        note(dict(stage=stage, seconds=result["train_seconds"]) | _scores(last, result, examples))
        shown[stage] = _patches(last.task.backbone, pictures)
    images = [picture for picture, _ in start.task.pictures(dict(inputs=pictures), (), False)]
    grid = start.task.backbone.patch_embed.dynamic_feat_size(tuple(pictures.shape[-2:]))
    plot_features(np.stack(images), shown, grid, out / "features.png")
    drawn = [out / "features.png"]
    if examples is not None and sizes:
        side = examples.transform.img_size
        known = {("teacher", side): rows[0], ("linear", side): rows[-1]}
        tested = compare_features(teacher, last.task.backbone, sizes, examples, known)
        found["sizes"] = merged(found["sizes"], tested)
        plot_accuracy_against_time(found["sizes"], out / "accuracy_and_time.png", score="probe")
        drawn.append(out / "accuracy_and_time.png")
    write_json(out / "stages.json", found)
    say(f"pictures: {', '.join(map(str, drawn))}")
    return found


def _check_chain(out: Path, stages: Sequence[str]) -> None:
    """Checks that each stage that is there already has begun with the one that is now before it.

    Raises:
        InputError: it has begun with other weights, or the stage before it is yet to be trained.
    """
    before = out / START / CALIBRATED
    for stage in stages:
        last = out / stage / LAST
        if last.is_file():
            left = config_beside(last, read_checkpoint(last))
            began = None if left is None else load_config(str(left)).model.get("init_from")
            if began is not None and Path(began).parts[-2:] != before.parts[-2:]:  # the folder may have been moved
                raise InputError(
                    f"--out: {last.parent} began with {began}, and by --stages {' '.join(stages)} it would begin with "
                    f"{before}; remove it, or name another folder"
                )
            if not before.is_file():
                raise InputError(f"--out: {last.parent} is there, and {before}, which it began with, is not; remove it")
        before = last


def _for_each(option: str, stages: Sequence[str], given: Sequence[Any] | None, default: dict[str, Any]) -> list:
    """A number for each stage."""
    known = tuple(default)
    if not stages or list(stages) != [stage for stage in known if stage in stages]:
        raise InputError(f"--stages: got {' '.join(stages)}, expected some of {' '.join(known)}, in this order")
    if given is not None and len(given) != len(stages):
        raise InputError(f"{option}: got {len(given)} numbers for {len(stages)} stages: {' '.join(stages)}")
    return [default[stage] for stage in stages] if given is None else list(given)


def _start(folder: Path, config: str, options: dict[str, Any], shared: dict[str, Any]) -> VisionRunner:
    """A runner of the model before any training, whose weights are kept in a folder: they are calibrated once.

    Raises:
        InputError: the folder has those of another model.
    """
    file = folder / CALIBRATED
    known = str(file) if file.is_file() and (folder / SETTINGS).is_file() else None
    made = _config(folder, config, STAGES[0], options, LENGTHS["blocks"], RATES["blocks"], known, **shared)
    parts = {key: made.model.get(key) for key in ("backbone", "teacher", "mean", "std", "calibration")}
    seen = made.train_dataloader.dataset
    settings = plain({**parts, "images": seen.root, "transform": seen.transform}, "model")
    if known:
        kept = read_json(folder / SETTINGS, dict)
        if differing := [key for key in settings if kept.get(key) != settings[key]]:
            key = differing[0]
            raise InputError(
                f"--out: {folder.parent} has states for {key} = {kept.get(key)}, not for {settings[key]}; give another "
                f"folder, or remove it"
            )
    runner = VisionRunner.from_cfg(made)
    runner.prepare()
    if not known:
        write_json(folder / SETTINGS, settings)
        meta = dict(epoch=0, iter=0, step_images=list(runner.step_images()))
        saved = dict(meta=meta, backend_args=dict(backend="atomic"), save_optimizer=False, save_param_scheduler=False)
        runner.save_checkpoint(str(folder), CALIBRATED, **saved)
    return runner


def render_row(row: dict) -> str:
    """A row as one line."""
    numbers = [f"{key} {row[key]:.2f}" for key in row if key not in ("stage", "seconds") and row[key] is not None]
    took = f" in {row['seconds']:.0f} s" if row["seconds"] else ""
    return f"{row['stage']}{took}: {', '.join(numbers)} percent"


def _pictures(runner: VisionRunner) -> Tensor:
    """The first images of the test that can be read, as the model gets them."""
    data: Any = runner.test_dataloader.dataset
    batch = collate_images([data[i] for i in range(min(SHOWN, len(data)))])
    if not len(batch["inputs"]):
        raise InputError(f"data: the first {SHOWN} images of the test cannot be read: {'; '.join(batch['errors'][:2])}")
    task: Any = runner.task
    return task.data_preprocessor(batch)["inputs"].to(next(task.backbone.parameters()).device)


@torch.no_grad()
def _patches(model: Any, images: Tensor) -> Tensor:
    """The final patches [B, N, C]."""
    return model.eval().forward_features(images)[:, model.num_prefix_tokens :].float().cpu()


def _config(
    folder: Path,
    config: str,
    stage: str,
    options: dict[str, Any],
    epochs: int,
    rate: float,
    before: str | None,
    data_root: str,
    device: str,
    seed: int | None,
) -> Config:
    """Of a stage without labels; `before` is the checkpoint that it begins with."""
    made = load_config(config, {**options, "model.stage": stage, "model.init_from": before, **_length(epochs, rate)})
    return _completed(made, folder, data_root, device, seed)


def _task_config(
    folder: Path,
    config: str,
    examples: Labelled,
    options: dict[str, Any],
    epochs: int,
    rate: float,
    before: str,
    data_root: str,
    device: str,
    seed: int | None,
) -> Config:
    """Of the stage with labels; it has no teacher, and no images but the labelled ones."""
    own = {key: value for key, value in options.items() if not key.startswith(UNLABELLED)}
    made = load_config(config, {**own, "model.init_from": before, **_length(epochs, rate)})
    set_num_classes(made, len(examples.classes))
    return _completed(made, folder, examples.root, device, seed)


def _length(epochs: int, rate: float) -> dict[str, Any]:
    return {
        "train_cfg.max_epochs": epochs,
        "param_scheduler.1.end": epochs,
        "optim_wrapper.optimizer.lr": rate,
    }


def _completed(config: Config, folder: Path, data_root: str, device: str, seed: int | None) -> Config:
    set_data_root(config, data_root)
    apply_train_options(config, work_dir=str(folder), resume="auto", device=device, seed=seed)
    config.experiment_name = f"linearize {folder}"  # mmengine keeps one message hub for each name
    return config


def _scores(runner: VisionRunner, result: dict, examples: Labelled | None) -> dict[str, float]:
    """Those of a test of the runner's weights, and of their features."""
    kept = ("cosine", "prefix_cosine", "top1")
    metrics = {key: round(float(value), 4) for key, value in result.items() if key in kept}
    return metrics if examples is None else metrics | examples.scores(runner.task.backbone)
