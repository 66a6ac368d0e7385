"""Training and evaluation: what mmengine's Runner needs from us."""

from .checkpoint import LastBestCheckpointHook
from .classifier import ImageClassifier, ImagePreprocessor
from .config import load_config
from .distributed import DistributedTask, join_processes, leave_processes
from .ema import ModelEmaHook
from .hooks import HistoryHook, StepSeedHook, UnreadableImagesHook
from .metrics import ClassificationMetric
from .optim import AutocastOptimWrapper, TimmOptimConstructor
from .options import apply_test_options, apply_train_options, set_data_root
from .runner import VisionRunner
from .work_dir import held

__all__ = [
    "AutocastOptimWrapper",
    "ClassificationMetric",
    "VisionRunner",
    "DistributedTask",
    "StepSeedHook",
    "HistoryHook",
    "ImageClassifier",
    "ImagePreprocessor",
    "LastBestCheckpointHook",
    "ModelEmaHook",
    "TimmOptimConstructor",
    "UnreadableImagesHook",
    "apply_test_options",
    "apply_train_options",
    "held",
    "join_processes",
    "leave_processes",
    "load_config",
    "set_data_root",
]
