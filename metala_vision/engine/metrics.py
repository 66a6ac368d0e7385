"""Accuracy of a classifier, and which classes it confuses."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch.nn import functional as F


@METRICS.register_module()
class ClassificationMetric(BaseMetric):
    """top1 and top5 (percent), mean cross-entropy, and the confusion matrix of the last evaluation.

    top5 is left out where there are fewer than six classes. `confusion[i, j]` counts images of class i taken for j.
    """

    confusion: np.ndarray | None = None

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
            self.classes = logits.shape[1]
            for sample in zip(labels, ranking[:, 0], ranks, losses):
                self.results.append(tuple(value.item() for value in sample))

    def evaluate(self, size: int) -> dict[str, float]:
        """The metrics of what all processes have seen together, in every process.

        mmengine's own way cuts all parts to the shortest: images would be lost where a process skipped unreadable ones.
        """
        results = [result for part in all_gather_object(self.results) for result in part]
        self.results.clear()
        self.classes = max(all_gather_object(getattr(self, "classes", 0)))
        return self.compute_metrics(results)

    def compute_metrics(self, results: list[tuple[int, int, int, float]]) -> dict[str, float]:
        if not results:
            raise ValueError("no image could be evaluated")
        labels, predicted, ranks, losses = (torch.tensor(column) for column in zip(*results))
        self.confusion = np.zeros((self.classes, self.classes), dtype=np.int64)
        np.add.at(self.confusion, (labels.numpy(), predicted.numpy()), 1)
        metrics = dict(top1=100 * (ranks < 1).double().mean().item())
        if self.classes > 5:
            metrics["top5"] = 100 * (ranks < 5).double().mean().item()
        return {**metrics, "loss": losses.double().mean().item()}
