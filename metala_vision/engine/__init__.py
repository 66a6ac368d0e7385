"""Training and evaluation: what mmengine's Runner needs from us."""

from .checkpoint import LastBestCheckpointHook
from .classifier import ImageClassifier, ImagePreprocessor
from .config import apply_test_options, apply_train_options, load_config, set_data_root
from .hooks import HistoryHook, StepSeedHook, UnreadableImagesHook
from .metrics import ClassificationMetric
from .optim import AutocastOptimWrapper, TimmOptimConstructor
from .runner import ClassificationRunner

__all__ = [
    "AutocastOptimWrapper",
    "ClassificationMetric",
    "ClassificationRunner",
    "StepSeedHook",
    "HistoryHook",
    "ImageClassifier",
    "ImagePreprocessor",
    "LastBestCheckpointHook",
    "TimmOptimConstructor",
    "UnreadableImagesHook",
    "apply_test_options",
    "apply_train_options",
    "load_config",
    "set_data_root",
]
