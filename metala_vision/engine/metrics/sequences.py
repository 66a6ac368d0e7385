"""How many of the answers that sequences ask for are right."""

from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.registry import METRICS
from torch.nn import functional as F

from metala_vision.data.recall import AssociativeRecall

from .base import GatheredMetric


@METRICS.register_module()
class AnswerMetric(GatheredMetric[AssociativeRecall]):
    """answers (percent that are right), sequences (percent whose answers are all right), mean cross-entropy."""

    def names(self, dataset: AssociativeRecall) -> tuple[str, ...]:
        return ("answers", "sequences", "loss")

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """One result per sequence; `data_samples` is what `SequenceModel` predicts for a batch."""
        for batch in data_samples:
            logits, labels, places = (batch[key].cpu() for key in ("logits", "labels", "sequences"))
            losses = F.cross_entropy(logits, labels, reduction="none")
            right = logits.argmax(1) == labels
            for sequence in places.unique():
                own = places == sequence
                self.results.append((int(own.sum()), int(right[own].sum()), losses[own].sum().item()))

    def compute_metrics(self, results: list[tuple[int, int, float]]) -> dict[str, float]:
        asked, right, losses = torch.tensor(results, dtype=torch.float64).unbind(1)
        self.asked = int(asked.sum())
        return dict(
            answers=100 * (right.sum() / asked.sum()).item(),
            sequences=100 * (right == asked).double().mean().item(),
            loss=(losses.sum() / asked.sum()).item(),
        )

    def report(self, dataset: AssociativeRecall, folder: Path) -> dict:
        """How many answers were asked for in the last evaluation."""
        return {"images": len(dataset), "asked": self.asked, "tokens": dataset.tokens, "pairs": dataset.pairs}
