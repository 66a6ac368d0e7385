"""scikit-learn's handwritten digits: 1797 images of 8x8, ten classes, no download."""

import numpy as np
from mmengine.registry import DATASETS

from .base import LabelledImages, check_split
from .splits import SPLITS, stratified_split


@DATASETS.register_module()
class Digits(LabelledImages):
    """A stratified split of the digits: 70 percent train, 10 val, 20 test; the same for every seed of a run."""

    def __init__(self, split: str, transform: dict | None = None):
        from sklearn.datasets import load_digits

        check_split(split)
        digits = load_digits()
        indices = stratified_split(digits.target, (0.7, 0.1, 0.2))[SPLITS.index(split)]
        grey = np.round(digits.images[indices] * (255 / 16)).astype(np.uint8)
        self.images = grey[..., None]
        super().__init__(split, [str(name) for name in digits.target_names], digits.target[indices], transform)

    def load(self, index: int) -> np.ndarray:
        return self.images[index]
