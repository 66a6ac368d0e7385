"""Training and evaluation: what mmengine's Runner needs from us."""

from . import imports  # isort: skip  # before anything else imports mmengine
from .metrics.classification import ClassificationMetric
from .metrics.likeness import LikenessMetric
from .metrics.sequences import AnswerMetric
from .run.checkpoint import LastBestCheckpointHook
from .run.config import load_config
from .run.distributed import DistributedTask, join_processes, leave_processes
from .run.ema import ModelEmaHook
from .run.hooks import HistoryHook, StepSeedHook, UnreadableImagesHook
from .run.optim import AutocastOptimWrapper, TimmOptimConstructor
from .run.options import apply_test_options, apply_train_options, set_data_root, set_num_classes
from .run.progress import RunLogProcessor, StepLoggerHook
from .run.runner import VisionRunner
from .run.work_dir import held
from .tasks.classifier import ImageClassifier, ImagePreprocessor
from .tasks.linearization import Linearization
from .tasks.sequence import SequenceModel

del imports

__all__ = [
    "AnswerMetric",
    "AutocastOptimWrapper",
    "ClassificationMetric",
    "VisionRunner",
    "DistributedTask",
    "StepSeedHook",
    "RunLogProcessor",
    "StepLoggerHook",
    "HistoryHook",
    "ImageClassifier",
    "ImagePreprocessor",
    "LastBestCheckpointHook",
    "LikenessMetric",
    "Linearization",
    "SequenceModel",
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
    "set_num_classes",
]
