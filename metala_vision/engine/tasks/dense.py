"""What detectors and segmenters share: images of any sizes, the timm model under them, and how they are shown."""

from collections.abc import Sequence

import numpy as np
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor

from metala_vision.dense import trunk_arguments
from metala_vision.errors import InputError

from .backbone import TimmModel, create_backbone

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@MODELS.register_module()
class DensePreprocessor(BaseDataPreprocessor):
    """Moves a batch to the model's device; images of any sizes become floats in [0, 1]."""

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        return {**data, "inputs": [image.float() / 255 for image in data["inputs"]]}


def create_trunk(backbone: dict, init_from: str | None, grad_checkpointing: bool) -> TimmModel:
    """A timm model without head for images of any size."""
    if not isinstance(backbone, dict) or "model_name" not in backbone:
        raise InputError(f"model.backbone: got {backbone!r}, expected a dict with model_name")
    trunk = create_backbone({**trunk_arguments(backbone["model_name"]), **backbone}, init_from)
    if grad_checkpointing:
        trunk.set_grad_checkpointing()
    return trunk


def check_types(datasets: Sequence, expected: type, what: str) -> None:
    for dataset in datasets:
        if not isinstance(dataset, expected):
            raise InputError(f"data: {type(dataset).__name__} ({dataset.split}) has no {what}")


def as_bytes(image: Tensor) -> Tensor:
    """A preprocessed image as uint8."""
    return (image * 255).round().byte().cpu()


def as_picture(drawn: Tensor) -> np.ndarray:
    """[C, H, W] -> [H, W, C]."""
    return drawn.permute(1, 2, 0).numpy()
