"""Exported files in the place of checkpoints, for tests."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metala_vision.deploy import Runtime, runtime
from metala_vision.deploy.runtimes import ENDINGS
from metala_vision.errors import InputError

from .tasks.classifier import ImageClassifier


def is_exported(file: str | Path) -> bool:
    """Whether a file's name is that of one that `tools/export.py` writes."""
    return Path(file).suffix in ENDINGS


def open_exported(file: str | Path, model: Any) -> tuple[Runtime, dict]:
    """A file in its runtime, and what it says of its model.

    Args:
        file: of a classifier.
        model: of the config that it is tested with.

    Raises:
        InputError: a file that is not there or not of `tools/export.py`, or not of a classifier with as many classes.
    """
    opened = runtime(ENDINGS[Path(file).suffix], file)
    described = json.loads(opened.metadata or "{}")
    if described.get("task") != "classification" or not isinstance(model, ImageClassifier):
        raise InputError(
            f"checkpoint: {file} is of the task {described.get('task')!r}, expected a classifier that tools/export.py "
            f"has written, and a config of one"
        )
    if described["num_classes"] != (expected := model.backbone.num_classes):
        raise InputError(f"checkpoint: {file} has {described['num_classes']} classes, expected the config's {expected}")
    return opened, described


class ExportedBackbone(nn.Module):
    """What stands in a classifier's task for its timm model."""

    def __init__(self, opened: Runtime):
        super().__init__()
        self.opened = opened

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, num_classes]."""
        return self.opened(images)[0].to(images.device)
