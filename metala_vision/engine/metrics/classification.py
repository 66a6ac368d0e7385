"""Accuracy of a classifier, and which classes it confuses."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.logging import print_log
from mmengine.registry import METRICS
from torch.nn import functional as F

from metala_vision.data import LabelledImages
from metala_vision.files import to_csv, write_atomic

from .base import GatheredMetric
from .plots import plot_confusion

NONE = -1  # the class that an image was taken for where its logits are no numbers


@METRICS.register_module()
class ClassificationMetric(GatheredMetric[LabelledImages]):
    """top1 and top5 (percent), mean cross-entropy, and the confusion matrix of the last evaluation.

    top5 is left out where there are fewer than six classes. `confusion[i, j]` counts images of class i taken for j. An
    image whose logits are no numbers is counted as wrong, and is not in `confusion`.
    """

    confusion: np.ndarray

    def names(self, dataset: LabelledImages) -> tuple[str, ...]:
        return ("top1", *(["top5"] if len(dataset.classes) > 5 else []), "loss")

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """One result per image; `data_samples` is what `ImageClassifier` predicts for a batch."""
        for batch in data_samples:
            logits, labels = batch["logits"].cpu(), batch["labels"].cpu()
            if len(labels) == 0:
                continue
            losses = F.cross_entropy(logits, labels, reduction="none")
            # Position of the true class among the scores; of equal scores the lower class index comes first.
            ranking = logits.argsort(dim=1, descending=True, stable=True)
            ranks = (ranking == labels[:, None]).int().argmax(dim=1)
            predicted, unknown = ranking[:, 0].clone(), logits.isnan().any(1)
            predicted[unknown], ranks[unknown] = NONE, logits.shape[1]  # the first class of the ranking means nothing
            self.classes = logits.shape[1]
            for sample in zip(labels, predicted, ranks, losses):
                self.results.append(tuple(value.item() for value in sample))

    def compute_metrics(self, results: list[tuple[int, int, int, float]]) -> dict[str, float]:
        self.classes = max(all_gather_object(getattr(self, "classes", 0)))
        labels, predicted, ranks, losses = (torch.tensor(column) for column in zip(*results))
        self.confusion = np.zeros((self.classes, self.classes), dtype=np.int64)
        answered = predicted != NONE
        np.add.at(self.confusion, (labels[answered].numpy(), predicted[answered].numpy()), 1)
        self.images = len(labels)
        if not answered.all():
            text = f"{int((~answered).sum())} of {len(labels)} images have logits that are no numbers: counted as wrong"
            print_log(text, logger="current", level=logging.WARNING)
        metrics = dict(top1=100 * (ranks < 1).double().mean().item())
        if self.classes > 5:
            metrics["top5"] = 100 * (ranks < 5).double().mean().item()
        return {**metrics, "loss": losses.double().mean().item()}

    def report(self, dataset: LabelledImages, folder: Path) -> dict:
        """Draws `confusion_matrix.png` and writes `per_class.csv` of the last evaluation; returns their paths."""
        picture, table = folder / "confusion_matrix.png", folder / "per_class.csv"
        if is_main_process():
            plot_confusion(self.confusion, dataset.classes, picture)
            write_atomic(table, to_csv(per_class(self.confusion, dataset.classes)))
        return {"images": self.images, "confusion_matrix": str(picture), "per_class": str(table)}


def per_class(confusion: np.ndarray, classes: Sequence[str]) -> list[dict]:
    """Precision, recall and F1 in percent of each class, None where there is nothing to divide by.

    `confusion[i, j]` counts images of class i taken for j.
    """
    right, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)

    def percent(part: int, whole: int) -> float | None:
        return round(100 * part / whole, 2) if whole else None

    return [
        {
            "class": name,
            "images": int(true[i]),
            "predicted": int(predicted[i]),
            "precision": percent(right[i], predicted[i]),
            "recall": percent(right[i], true[i]),
            "f1": percent(2 * right[i], true[i] + predicted[i]),
        }
        for i, name in enumerate(classes)
    ]
