"""Exported files in the place of checkpoints, for tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metala_vision.deploy import Runtime
from metala_vision.deploy.runtimes import ENDINGS, described_runtime
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
    opened, described = described_runtime(file)
    if described["task"] != "classification" or not isinstance(model, ImageClassifier):
        raise InputError(
            f"checkpoint: {file} is of the task {described['task']!r}, expected a classifier that tools/export.py "
            f"has written, and a config of one"
        )
    if described["num_classes"] != (expected := model.backbone.num_classes):
        raise InputError(f"checkpoint: {file} has {described['num_classes']} classes, expected the config's {expected}")
    return opened, described


def check_sizes(file: str | Path, described: dict, sizes: Sequence[Any], batch: int) -> None:
    """Whether a file takes what it is tested with.

    Args:
        file: for the message.
        described: by itself.
        sizes: of the test images, each a side or (height, width); None where the config's data say it.
        batch: images of a step.

    Raises:
        InputError: it was exported for images of one size, or one by one.
    """
    height, width = described["input_size"][1:]
    sides = [(size, size) if isinstance(size, int) else tuple(size) for size in sizes if size is not None]
    if "size" not in described["dynamic"] and (wrong := [s for s in sides if s != (height, width)]):
        raise InputError(
            f"checkpoint: {file} takes images of {height}x{width} pixels alone, and is tested at {wrong[0][0]}x"
            f"{wrong[0][1]}; export it with the size open"
        )
    if "batch" not in described["dynamic"] and batch != 1:
        raise InputError(f"checkpoint: {file} takes one image at a time; set test_dataloader.batch_size=1")


class ExportedBackbone(nn.Module):
    """What stands in a classifier's task for its timm model."""

    def __init__(self, opened: Runtime):
        super().__init__()
        self.opened = opened

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, num_classes]."""
        return self.opened(images)[0].to(images.device)
