"""The intersection over union of a segmenter."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.dist import all_gather_object, is_main_process
from mmengine.registry import METRICS

from metala_vision.data import MaskDataset
from metala_vision.data.masks import IGNORE
from metala_vision.errors import InputError
from metala_vision.files import to_csv, write_atomic

from .base import GatheredMetric
from .dense_plots import draw_classes


@METRICS.register_module()
class SegmentationMetric(GatheredMetric[MaskDataset]):
    """mIoU over the classes that occur, and the share of the pixels that are right (`accuracy`), both in [0, 1].

    Args:
        pictures: number of test images that are drawn, with the classes found beside the true ones.
    """

    confusion: np.ndarray

    def __init__(self, pictures: int = 8, **kwargs):
        super().__init__(**kwargs)
        if pictures < 0:
            raise InputError(f"pictures: got {pictures!r}, expected at least 0")
        self.pictures = pictures
        self.kept: list[tuple[int, np.ndarray]] = []

    def names(self, dataset: MaskDataset) -> tuple[str, ...]:
        return ("mIoU", "accuracy")

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """One result for all images: their number, and the count of their pixels by [true, found] class.

        A count for each image would be gigabytes where there are many classes.
        """
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            found, true = (sample[key].cpu().numpy() for key in ("found", "mask"))
            counted = true != IGNORE
            pairs = classes * true[counted].astype(np.int64) + found[counted]
            images, confusion = self.results.pop() if self.results else (0, 0)
            self.results.append((images + 1, confusion + np.bincount(pairs, minlength=classes**2)))
            if sample["index"] < self.pictures:
                self.kept.append((sample["index"], found))

    def compute_metrics(self, results: list[tuple[int, np.ndarray]]) -> dict[str, float]:
        self.images = sum(images for images, _ in results)
        classes = len(self.dataset_meta["classes"])
        self.confusion = np.sum([counts for _, counts in results], axis=0).reshape(classes, classes)
        kept = [item for part in all_gather_object(self.kept) for item in part]
        self.shown, self.kept = sorted(kept, key=lambda item: item[0]), []
        overlap = intersection_over_union(self.confusion)
        right = np.trace(self.confusion) / max(self.confusion.sum(), 1)
        return dict(mIoU=float(np.nanmean(overlap)), accuracy=float(right))

    def report(self, dataset: MaskDataset, folder: Path) -> dict:
        """Writes `per_class.csv` and pictures of the last evaluation; returns their paths."""
        table = folder / "per_class.csv"
        if is_main_process():
            pixels = self.confusion.sum(1)
            rows = [
                {"class": name, "pixels": int(pixels[i]), "IoU": None if np.isnan(value) else round(float(value), 4)}
                for i, (name, value) in enumerate(zip(dataset.classes, intersection_over_union(self.confusion)))
            ]
            write_atomic(table, to_csv(rows))
            for index, found in self.shown:
                picture = draw_classes(dataset[index], found, dataset.classes)
                write_atomic(folder / "pictures" / f"{index:05d}.png", picture)
        pictures = {"pictures": str(folder / "pictures")} if self.pictures else {}
        return {"images": self.images, "per_class": str(table), **pictures}


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """[classes] float64, from a count of pixels by [true, found] class; NaN for a class that occurs in neither."""
    both = np.diag(confusion).astype(np.float64)
    either = confusion.sum(0) + confusion.sum(1) - both
    return np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)
