"""A linearized ViT that learns from the softmax ViT it was made from, without labels."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from metala_vision.data import LabelledImages, SampleKey, collate_images
from metala_vision.dense.trunk import ANY_SIZE
from metala_vision.errors import InputError
from metala_vision.linearize import calibrate
from metala_vision.models.linearized_vit import LinearizedViT

from .backbone import TimmModel, create_backbone
from .base import START, TaskModel, first_sample, place, seen_by
from .classifier import ImagePreprocessor
from .frozen import Frozen

STAGES = ("blocks", "features")
NAME = "linearized_vit"


@MODELS.register_module()
class Linearization(TaskModel):
    """Trains a `LinearizedViT` to do what its teacher does.

    It begins with the teacher's weights and with states from the teacher's keys on `calibration` images of the
    training, see `metala_vision.linearize.calibrate`; or, with `init_from`, with those of an earlier stage.

    Args:
        backbone: arguments of `timm.create_model` for the linear model: dict(model_name="linearized_vit",
            teacher="vit_small_patch14_dinov2", mixer="classes"), and others of `LinearizedViT`.
        teacher: arguments that bring the teacher's weights in: dict(pretrained=True) or dict(checkpoint_path=...).
        mean: of the images' channels in [0, 1], see `ImagePreprocessor`.
        std: of the same.
        stage: "blocks", where every linear attention gets what the teacher's gets, and is to return what that returns;
            nothing else is trained. Or "features", where all weights are trained for the teacher's final tokens.
        calibration: images that the first states are made from; 0 leaves them random.
        init_from: checkpoint of an earlier stage.
        grad_checkpointing: recompute activations in the backward pass, for less memory.

    Raises:
        InputError: a part that does not fit; the message names the argument.
    """

    part = "backbone"
    task = "linearization"
    backbone: Any  # a LinearizedViT, whose attributes timm does not type

    def __init__(
        self,
        backbone: dict,
        teacher: dict,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        stage: str = "blocks",
        calibration: int = 64,
        init_from: str | None = None,
        grad_checkpointing: bool = False,
        data_preprocessor: dict | None = None,
    ):
        super().__init__(data_preprocessor or ImagePreprocessor(mean, std))
        if stage not in STAGES:
            raise InputError(f"model: stage is {stage!r}, expected one of {STAGES}")
        if type(calibration) is not int or calibration < 0:
            raise InputError(f"model: calibration is {calibration!r}, expected a number of images, or 0")
        if not isinstance(backbone, dict) or backbone.get("model_name") != NAME:
            raise InputError(f"model.backbone: got {backbone!r}, expected a dict with model_name={NAME!r}")
        if not isinstance(teacher, dict) or not (teacher.get("pretrained") or teacher.get("checkpoint_path")):
            raise InputError("model.teacher: it has no weights; set its pretrained or checkpoint_path")
        brought = sorted(set(teacher) - set(START))
        if brought:
            raise InputError(f"model.teacher: got {', '.join(brought)}, which are arguments of model.backbone")
        self.stage, self.calibration, self.started_from = stage, calibration, init_from
        self.mean, self.std = tuple(mean), tuple(std)
        self.arguments, self.options = dict(backbone), {}
        self.backbone = create_backbone(backbone, init_from)
        own = ("model_name", "teacher", "mixer", "keep_softmax", "states", "scan", "decay_scale", "drop_path_rate")
        shared = {key: value for key, value in backbone.items() if key not in (*own, *START)}
        name = backbone.get("teacher", "vit_small_patch16_224")
        # Of any size, as the linear model: DINOv2's ViTs are of 518 pixels, and are used at all sizes.
        arguments = {"model_name": name, "num_classes": self.backbone.num_classes, **shared, **ANY_SIZE, **teacher}
        self.teacher = Frozen(create_backbone(arguments, setting="model.teacher"))
        if init_from is None:
            self.backbone.load_state_dict(self.teacher.model.state_dict(), strict=False)
        self.linear = [i for i, block in enumerate(self.backbone.blocks) if block.is_linear]
        if not self.linear:
            raise InputError("model.backbone: keep_softmax keeps every block: there is nothing to learn")
        if stage == "blocks":
            self.backbone.requires_grad_(False)
            for i in self.linear:
                self.backbone.blocks[i].attn.requires_grad_(True)
        if grad_checkpointing:
            self.backbone.set_grad_checkpointing()

    @property
    def trunk(self) -> TimmModel:
        """The linear model."""
        return self.backbone

    def check(self, datasets: Sequence[LabelledImages]) -> None:
        """Whether the images of all splits fit the model; their labels do not matter."""
        self.images = datasets[0]
        for dataset in datasets:
            image = first_sample(dataset, place(dataset))["image"]
            if image.shape[0] != len(self.mean) or len(self.mean) != len(self.std):
                raise InputError(
                    f"model: mean has {len(self.mean)} and std {len(self.std)} channels, but the images of "
                    f"{place(dataset)} have {image.shape[0]}"
                )

    def start(self, classes: Sequence[str] | None) -> None:
        """The first states, and the grid of the training, to which the decay is scaled."""
        sample = first_sample(self.images, place(self.images))["image"]
        embed: Any = self.backbone.patch_embed
        self.backbone._set_nominal_grid(tuple(embed.dynamic_feat_size(tuple(sample.shape[-2:]))))
        if self.started_from is not None or self.calibration == 0:
            return
        count = min(self.calibration, len(self.images))
        print_log(f"calibration: states from the keys of {count} images", logger="current", level=logging.INFO)
        places = np.linspace(0, len(self.images) - 1, count).round().astype(int)
        try:
            calibrate(self.backbone, self.teacher.to(_device(self.backbone)), self._batches(places))
        except ValueError as error:
            raise InputError(f"model: calibration: {error}") from error

    def _batches(self, places: np.ndarray, size: int = 8):
        """Images of the training as the model gets them, the same in every process."""
        for first in range(0, len(places), size):
            samples = [self.images[SampleKey(int(i), int(i))] for i in places[first : first + size]]
            inputs = self.data_preprocessor(collate_images(samples))["inputs"]
            if len(inputs):
                yield inputs.to(_device(self.backbone))

    def preprocessing(self, evaluation: LabelledImages, image: Tensor) -> dict:
        """As the transform of a test and the preprocessor have it."""
        return seen_by(evaluation.transform, image, self.mean, self.std)

    def pictures(self, batch: dict, classes: Sequence[str], training: bool) -> list[tuple[np.ndarray, str]]:
        """The images as the models get them."""
        images = batch["inputs"] * self.data_preprocessor.std + self.data_preprocessor.mean
        return [(image, "") for image in images.permute(0, 2, 3, 1).cpu().numpy()]

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, errors: list[str] | None = None, mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor] | list[dict]:
        """[B, C, H, W] normalised images -> features, dict(loss), or one dict(patches, prefix) of cosines [B]."""
        if len(inputs) == 0 and mode != "tensor":
            if mode == "loss":
                return self.zero_loss()
            return [dict(patches=inputs.new_empty(0), prefix=inputs.new_empty(0))]
        if mode == "loss":
            return dict(loss=self._blocks(inputs) if self.stage == "blocks" else self._features(inputs))
        features = self.backbone.forward_features(inputs)
        if mode == "tensor":
            return features
        taught = self.teacher.to(inputs.device)
        with torch.no_grad():
            wanted = taught.forward_features(inputs).float()
        cosine = F.cosine_similarity(features.float(), wanted, dim=-1)
        before = self.backbone.num_prefix_tokens
        prefix = cosine[:, :before].mean(1) if before else cosine.new_empty(0)
        return [dict(patches=cosine[:, before:].mean(1), prefix=prefix)]

    def _blocks(self, images: Tensor) -> Tensor:
        """The mean over blocks of the square error of an attention's output, over the variance between tokens."""
        taught = self.teacher.to(images.device)
        seen: dict[int, tuple[Tensor, Tensor]] = {}
        handles = [
            taught.blocks[i].attn.register_forward_hook(lambda _, x, y, i=i: seen.update({i: (x[0], y)}))
            for i in self.linear
        ]
        try:
            with torch.no_grad():
                taught.forward_features(images)
        finally:
            for handle in handles:
                handle.remove()
        embed: Any = self.backbone.patch_embed
        grid = tuple(embed.dynamic_feat_size(tuple(images.shape[-2:])))
        errors = [_error(self.backbone.blocks[i].attn(x, grid), y) for i, (x, y) in seen.items()]
        return torch.stack(errors).mean()

    def _features(self, images: Tensor) -> Tensor:
        """The square error of the final tokens over their variance, and one minus their cosine."""
        taught = self.teacher.to(images.device)
        with torch.no_grad():
            wanted = taught.forward_features(images).float()
        found = self.backbone.forward_features(images).float()
        return _error(found, wanted) + (1 - F.cosine_similarity(found, wanted, dim=-1)).mean()


def _error(found: Tensor, wanted: Tensor) -> Tensor:
    found, wanted = found.float(), wanted.float()
    spread = (wanted - wanted.mean(1, keepdim=True)).square().mean()
    return (found - wanted).square().mean() / (spread + 1e-6)


def _device(model: LinearizedViT) -> torch.device:
    return next(model.parameters()).device
