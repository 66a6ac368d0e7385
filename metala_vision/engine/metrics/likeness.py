"""How alike the features of a model are to those of its teacher."""

from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.registry import METRICS

from metala_vision.data import LabelledImages

from .base import GatheredMetric


@METRICS.register_module()
class LikenessMetric(GatheredMetric[LabelledImages]):
    """cosine and prefix_cosine, in percent: means over images, of the final patches and of what is before them."""

    def names(self, dataset: LabelledImages) -> tuple[str, ...]:
        return ("cosine", "prefix_cosine")

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """One result per image; `data_samples` is what `Linearization` predicts for a batch."""
        for batch in data_samples:
            prefix = batch["prefix"].cpu().tolist() or [None] * len(batch["patches"])
            self.results += list(zip(batch["patches"].cpu().tolist(), prefix))

    def compute_metrics(self, results: list[tuple[float, float | None]]) -> dict[str, float]:
        self.images = len(results)
        patches, prefix = zip(*results)
        metrics = dict(cosine=100 * torch.tensor(patches, dtype=torch.float64).mean().item())
        if prefix[0] is not None:
            metrics["prefix_cosine"] = 100 * torch.tensor(prefix, dtype=torch.float64).mean().item()
        return metrics

    def report(self, dataset: LabelledImages, folder: Path) -> dict:
        """How many images there were."""
        return {"images": self.images}
