"""A pretrained ViT made linear in stages, with what each has brought: what tools/linearize.py calls."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from metala_vision.data import EvalTransform, ImageFolder, collate_images, stratified_subset
from metala_vision.errors import InputError
from metala_vision.files import write_json
from metala_vision.linearize.measure import knn, linear_probe, pooled

from .metrics.feature_plots import plot_features
from .run.checkpoint import LAST
from .run.config import load_config
from .run.options import apply_train_options, set_data_root
from .run.runner import VisionRunner
from .tasks.linearization import STAGES, Linearization

START = "start"  # what stands where no stage has been trained
PER_CLASS = 50  # labelled images that neighbours and probe learn from, of each class
TESTED = 1000  # and are tested on, at most
SHOWN = 6  # pictures whose features are drawn


def linearize_in_stages(
    config: str,
    options: dict[str, Any],
    data_root: str,
    out: str | Path,
    stages: Sequence[str] = STAGES,
    epochs: Sequence[int] = (1, 1),
    rates: Sequence[float] = (1e-3, 1e-4),
    labels: str | None = None,
    device: str = "auto",
    seed: int | None = None,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """Calibrates, then trains stage after stage, each from the weights of the one before it.

    Args:
        config: one of configs/linearize/.
        options: overrides of it, such as {"model.backbone.teacher": "vit_small_patch16_224"}.
        data_root: a folder of images, at any depth.
        out: a folder; each stage has its run in a folder of its name there. Stages that have ended are not run again.
        stages: out of "blocks" and "features", in their order.
        epochs: of each stage.
        rates: learning rate of each stage.
        labels: a folder with a subfolder per class, for neighbours and a linear probe on features; None for neither.
        device: as for tools/train.py.
        seed: as for tools/train.py.
        say: is told what is going on.

    Returns:
        A row for the start and for each stage: `stage`, `seconds` of its training, `cosine` and `prefix_cosine`, and
        with `labels` `knn_...` and `probe_...` of mean patches and of the token before them; the teacher's likewise in
        a row of its own. Also in `out/stages.json`, as far as it has come; `out/features.png` shows the features.

    Raises:
        InputError: what does not fit, before anything is trained.
    """
    if not (len(stages) == len(epochs) == len(rates)) or list(stages) != [s for s in STAGES if s in stages]:
        raise InputError(
            f"--stages: got {' '.join(stages)} with {len(epochs)} --epochs and {len(rates)} --lr, expected some of "
            f"{' '.join(STAGES)} in this order, and a number for each"
        )
    out, before = Path(out), None
    rows: list[dict] = []
    shared: dict[str, Any] = dict(config=config, options=options, data_root=data_root, device=device, seed=seed)
    runner = VisionRunner.from_cfg(_config(out / START, STAGES[0], None, 1, 1e-3, **shared))
    runner.prepare()
    examples = None if labels is None else _Labelled(labels, runner)
    if examples is not None:
        taught = runner.task.teacher.to(examples.device)
        rows.append(dict(stage="teacher", seconds=None, cosine=100.0, prefix_cosine=100.0) | examples.scores(taught))
    rows.append(dict(stage=START, seconds=0.0) | _scores(runner, examples))
    for row in rows:
        say(render_row(row))
    write_json(out / "stages.json", rows)
    pictures = _pictures(runner)
    shown = {"teacher": _patches(runner.task.teacher.to(pictures.device), pictures)}
    shown[START] = _patches(runner.task.backbone, pictures)
    for stage, length, rate in zip(stages, epochs, rates):
        folder, begun = out / stage, time.perf_counter()
        runner = VisionRunner.from_cfg(_config(folder, stage, before, length, rate, **shared))
        result = runner.train_and_test()
        write_json(folder / "result.json", result)
        seconds = result.get("train_seconds", time.perf_counter() - begun)
        rows.append(dict(stage=stage, seconds=seconds) | _scores(runner, examples))
        say(render_row(rows[-1]))
        write_json(out / "stages.json", rows)
        shown[stage] = _patches(runner.task.backbone, pictures)
        before = str(folder / LAST)
    images = [picture for picture, _ in runner.task.pictures(dict(inputs=pictures), (), False)]
    grid = runner.task.backbone.patch_embed.dynamic_feat_size(tuple(pictures.shape[-2:]))
    plot_features(np.stack(images), shown, grid, out / "features.png")
    say(f"pictures: {out / 'features.png'}")
    return rows


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
    stage: str,
    before: str | None,
    epochs: int,
    rate: float,
    config: str,
    options: dict[str, Any],
    data_root: str,
    device: str,
    seed: int | None,
) -> Config:
    made = load_config(
        config,
        {
            **options,
            "model.stage": stage,
            "model.init_from": before,
            "train_cfg.max_epochs": epochs,
            "param_scheduler.1.end": epochs,
            "optim_wrapper.optimizer.lr": rate,
        },
    )
    set_data_root(made, data_root)
    apply_train_options(made, work_dir=str(folder), resume="auto", device=device, seed=seed)
    made.experiment_name = f"linearize {folder}"  # mmengine keeps one message hub for each name
    return made


def _scores(runner: VisionRunner, examples: "_Labelled | None") -> dict[str, float]:
    metrics = {
        key: round(float(value), 4) for key, value in runner.test().items() if key in ("cosine", "prefix_cosine")
    }
    return metrics if examples is None else metrics | examples.scores(runner.task.backbone)


class _Labelled:
    """Labelled images, for neighbours and a linear probe."""

    def __init__(self, root: str, runner: VisionRunner):
        task = runner.task
        if not isinstance(task, Linearization):
            raise InputError(f"config: its model is a {type(task).__name__}, expected a Linearization")
        tested: Any = runner.test_dataloader.dataset
        if not isinstance(tested.transform, EvalTransform):
            raise InputError("config: the transform of its test is no EvalTransform")
        self.prepared = task.data_preprocessor
        self.device = next(task.backbone.parameters()).device
        as_tested: dict[str, Any] = dict(transform=tested.transform)
        self.parts = {split: ImageFolder(root, split, **as_tested) for split in ("train", "test")}
        counts = {"train": PER_CLASS * len(self.parts["train"].classes), "test": TESTED}
        self.chosen = {
            split: stratified_subset(data.labels, min(counts[split], len(data)), seed=0)
            for split, data in self.parts.items()
        }

    def scores(self, model: Any) -> dict[str, float]:
        """Neighbours and probe of a model's features."""
        training = model.training
        model.eval()
        features, labels = {}, {}
        for split in self.parts:
            kept: list[int] = []
            features[split] = pooled(model, self._batches(split, kept))
            labels[split] = np.array(kept)
        model.train(training)
        found: dict[str, float] = {}
        for kind in features["train"]:
            pair = features["train"][kind], labels["train"], features["test"][kind], labels["test"]
            found |= {f"knn_{kind}": round(knn(*pair), 2), f"probe_{kind}": round(linear_probe(*pair), 2)}
        return found

    def _batches(self, split: str, labels: list[int], size: int = 16) -> Iterator[Tensor]:
        """Images as the model gets them; the labels of those that can be read are added to `labels`."""
        data, places = self.parts[split], self.chosen[split]
        for first in range(0, len(places), size):
            batch = collate_images([data[int(i)] for i in places[first : first + size]])
            if len(batch["inputs"]):
                labels += batch["labels"].tolist()
                with torch.no_grad():
                    yield self.prepared(batch)["inputs"].to(self.device)
