"""What the metrics of all tasks share."""

from typing import Generic, TypeVar

from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from torch.utils.data import Dataset

OfTask = TypeVar("OfTask", bound=Dataset)  # the datasets of a task


class GatheredMetric(BaseMetric, Generic[OfTask]):
    """A metric that every process computes from the results of all processes.

    mmengine itself cuts the results of all processes to the shortest: images would be lost where a process skipped
    unreadable ones.
    """

    default_prefix = ""  # no prefix; with None mmengine would warn in every run

    def names(self, dataset: OfTask) -> tuple[str, ...] | None:
        """The names of a dataset's metrics, None if not known. A result may lack a metric that means nothing for it."""
        return None

    def evaluate(self, size: int) -> dict[str, float]:
        """The metrics of all results, which are cleared afterwards."""
        results = [result for part in all_gather_object(self.results) for result in part]
        self.results.clear()
        if not results:
            raise ValueError("no image could be evaluated")
        return self.compute_metrics(results)
