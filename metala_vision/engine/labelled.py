"""Labelled images, by whose classes the features of models are told apart: neighbours and a linear probe."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metala_vision.data import EvalTransform, ImageFolder, collate_images, stratified_subset
from metala_vision.errors import InputError
from metala_vision.linearize.measure import knn, linear_probe, pooled

from .run.runner import VisionRunner
from .tasks.linearization import Linearization

PER_CLASS = 50  # images that neighbours and probe learn from, of each class
TESTED = 1000  # and are tested on, at most


class Labelled:
    """Some images of a folder with a subfolder per class, as the test of a run would have them.

    Args:
        root: of the folder, in any layout that `ImageFolder` knows.
        runner: its test has the transform, and its task prepares the images.

    Raises:
        InputError: no such folder, a single class, or a run whose images are not prepared for one model alone.
    """

    def __init__(self, root: str, runner: VisionRunner):
        task = runner.task
        if not isinstance(task, Linearization):
            raise InputError(f"config: its model is a {type(task).__name__}, expected a Linearization")
        tested: Any = runner.test_dataloader.dataset
        if not isinstance(tested.transform, EvalTransform):
            raise InputError("config: the transform of its test is no EvalTransform")
        self.root, self.transform = root, tested.transform
        self.prepared = task.data_preprocessor
        self.device = next(task.backbone.parameters()).device
        self.parts = {split: ImageFolder(root, split) for split in ("train", "test")}
        self.classes = self.parts["train"].classes
        if len(self.classes) < 2:
            raise InputError(f"--labels: {root} has one class, {self.classes[0]}; expected two or more to tell apart")
        counts = {"train": PER_CLASS * len(self.classes), "test": TESTED}
        self.chosen = {
            split: stratified_subset(data.labels, min(counts[split], len(data)), seed=0)
            for split, data in self.parts.items()
        }

    def scores(self, model: Any, img_size: int | None = None) -> dict[str, float]:
        """Percent of the tested images that neighbours and a probe tell right by a model's features.

        Args:
            model: a VisionTransformer.
            img_size: side of the images; None is that of the run's test.

        Returns:
            `knn_patches` and `probe_patches`, by the mean of the final patches, and `knn_prefix` and `probe_prefix`, by
            the first token before them, where there is one.
        """
        training = model.training
        model.eval()
        features, labels = {}, {}
        tested = self.transform
        transform = EvalTransform(img_size or tested.img_size, tested.crop_ratio, tested.interpolation)
        for split, data in self.parts.items():
            data.transform = transform
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
