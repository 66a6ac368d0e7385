"""An image classifier for mmengine's Runner around any timm model."""

import timm
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from metala_vision.errors import InputError, near_matches


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """Moves a batch to the model's device and normalises uint8 images there: (image / 255 - mean) / std.

    Args:
        mean: one number per channel, of images in [0, 1].
        std: likewise.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        if len(data["inputs"]) == 0:  # no image of the batch could be read
            return data
        return {**data, "inputs": (data["inputs"].float() / 255 - self.mean) / self.std}


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """Cross-entropy training of a timm model.

    Args:
        backbone: arguments of `timm.create_model`, such as dict(model_name="metala_vit_tiny", num_classes=10).
        mean, std: normalisation of the images, see `ImagePreprocessor`.
        label_smoothing: share of the target spread over all classes.

    Raises:
        InputError: a model timm does not know, an argument the model does not take, or mean and std of other channels.
    """

    def __init__(
        self,
        backbone: dict,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        label_smoothing: float = 0.0,
        data_preprocessor: dict | None = None,
    ):
        super().__init__(data_preprocessor or ImagePreprocessor(mean, std))
        self.backbone = _create(dict(backbone))
        self.label_smoothing = label_smoothing
        in_chans = getattr(self.backbone, "in_chans", None)
        if in_chans is not None and not len(mean) == len(std) == in_chans:
            raise InputError(
                f"model: mean has {len(mean)} and std {len(std)} channels, expected {in_chans}, the model's in_chans"
            )

    def init_weights(self) -> None:
        """Nothing: timm has initialised the backbone, or loaded it. mmengine would call its init_weights again."""

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, errors: list[str] | None = None, mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """[B, C, H, W] normalised images -> logits [B, classes], dict(loss), or one dict(logits, labels) per batch.

        A batch whose images were all unreadable has B = 0: its loss is zero and has zero gradients.
        """
        if len(inputs) == 0 and mode != "tensor":
            if mode == "loss":
                return dict(loss=sum(p.sum() for p in self.backbone.parameters()) * 0.0)
            return [dict(logits=inputs.new_empty(0, self.backbone.num_classes), labels=labels)]
        logits = self.backbone(inputs)
        if mode == "loss":
            return dict(loss=F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing))
        if mode == "predict":
            return [dict(logits=logits.float(), labels=labels)]
        return logits


def _create(arguments: dict) -> torch.nn.Module:
    name = arguments.pop("model_name", None)
    if not isinstance(name, str) or not timm.is_model(name):
        raise InputError(f"model: unknown model_name {name!r}{near_matches(str(name), timm.list_models())}")
    try:
        return timm.create_model(name, **arguments)
    except FileNotFoundError as error:
        raise InputError(f"model: {name}: no file {arguments.get('checkpoint_path')}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"model: {name}: {error}") from error
