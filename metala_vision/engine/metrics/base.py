"""What the metrics of all tasks share."""

from typing import Generic, TypeVar

from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from torch.utils.data import Dataset

OfTask = TypeVar("OfTask", bound=Dataset)  # the datasets of a task


class GatheredMetric(BaseMetric, Generic[OfTask]):
    """A metric of what all processes have seen together, in every process.

    mmengine's own way cuts all parts to the shortest: images would be lost where a process skipped unreadable ones.
    """

    default_prefix = ""  # names as they are; mmengine warns in every run where none is set

    def names(self, dataset: OfTask) -> tuple[str, ...] | None:
        """What the metrics of a dataset are called; one may be left out where it means nothing. None: not known."""
        return None

    def evaluate(self, size: int) -> dict[str, float]:
        """The metrics of all results, which are forgotten."""
        results = [result for part in all_gather_object(self.results) for result in part]
        self.results.clear()
        if not results:
            raise ValueError("no image could be evaluated")
        return self.compute_metrics(results)
