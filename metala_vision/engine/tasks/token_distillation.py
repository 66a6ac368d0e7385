"""Distillation of final tokens: a model learns to see what any trained model of timm sees, without its classes."""

import logging
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.nn import functional as F

from metala_vision.dense.trunk import FeatureMap, trunk_arguments
from metala_vision.errors import InputError

from .backbone import TimmModel, create_backbone, read_weights
from .frozen import AsTaught, Frozen, check_teacher

RIDGE = 1e-4  # of the mean variance of a channel: keeps the map between tokens finite where channels repeat others


class TokenDistillation:
    """A frozen teacher beside the model, whose final tokens are to be a linear function of the model's.

    The linear function is fitted anew to every batch, by least squares, so that model and teacher may have different
    numbers of channels and nothing beside the model has weights that would have to be kept. Where their grids differ,
    the teacher's tokens are resampled to the model's grid. A batch should have several times as many tokens as the
    model has channels: of fewer, any tokens are a linear function.

    Args:
        teacher: arguments of `timm.create_model`, with `pretrained=True` or a `checkpoint_path`. A checkpoint may be of
            a detector or a segmenter that a run has trained around this model.
        mean: of the channels of the model's images in [0, 1].
        std: their standard deviation.
        weight: share of the distillation in the loss, in (0, 1]; with 1 the labels do not matter.
        img_size: of the teacher's images, see `AsTaught`.
        teacher_mean: of the same.
        teacher_std: of the same.

    Raises:
        InputError: a number out of range, a teacher without weights or without a map of tokens.
    """

    def __init__(
        self,
        teacher: dict,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        weight: float = 0.5,
        img_size: int | None = None,
        teacher_mean: tuple[float, ...] | None = None,
        teacher_std: tuple[float, ...] | None = None,
    ):
        check_teacher(teacher, weight)
        self.weight = weight
        model = _create(teacher)
        self.as_taught = AsTaught(model.pretrained_cfg, mean, std, img_size, teacher_mean, teacher_std)
        self.map = Frozen(FeatureMap(model))
        self.warned = False

    def check(self, image: Tensor) -> None:
        """Whether the teacher takes images [C, H, W] of this size.

        Raises:
            InputError: it does not.
        """
        try:
            self.teach(torch.zeros(1, *image.shape))
        except Exception as error:  # a model is anybody's code
            size = "x".join(map(str, image.shape[-2:]))
            raise InputError(
                f"model.distillation: the teacher takes no images of {len(image)} channels and {size} pixels: {error}; "
                f"model.distillation.img_size resizes them for it"
            ) from error

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] as the model gets them -> the teacher's map [B, channels, rows, columns]."""
        return self.map.to(images.device)(self.as_taught(images)).float()

    def loss(self, images: Tensor, tokens: Tensor, base: Tensor) -> Tensor:
        """The weighted sum of `base`, the loss against the labels, and of `unexplained` by the model's map."""
        taught = self.teach(images)
        if taught.shape[-2:] != tokens.shape[-2:]:
            taught = F.interpolate(taught, tuple(tokens.shape[-2:]), mode="bilinear", antialias=True)
        count = tokens.shape[0] * tokens.shape[2] * tokens.shape[3]
        if count < 2 * tokens.shape[1] and not self.warned:
            self.warned = True
            print_log(
                f"distillation: a batch of {count} tokens tells little about {tokens.shape[1]} channels; take larger "
                f"batches or images",
                logger="current",
                level=logging.WARNING,
            )
        found, wanted = (x.float().movedim(1, -1).flatten(0, -2) for x in (tokens, taught))
        return (1 - self.weight) * base + self.weight * unexplained(found, wanted)


def tokens_and_logits(model: TimmModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """[B, C, H, W] -> the map of final tokens [B, channels, rows, columns], and the logits."""
    options = dict(norm=True) if isinstance(getattr(model, "norm", None), torch.nn.Module) else {}
    features, maps = model.forward_intermediates(images, indices=1, output_fmt="NCHW", **options)
    return maps[-1], model.forward_head(features)


def unexplained(found: Tensor, wanted: Tensor) -> Tensor:
    """The share of the variance of `wanted` [N, D] that no linear function of `found` [N, C] has, mean over channels.

    The best function is taken as fixed in the backward pass: since it is the best one, its own change does not change
    the error to first order.
    """
    with torch.autocast(found.device.type, enabled=False):
        found, wanted = found - found.mean(0), wanted - wanted.mean(0)
        wanted = wanted / (wanted.square().mean(0).sqrt() + 1e-6)
        with torch.no_grad():
            products = found.T @ found
            products.diagonal().add_(RIDGE * products.diagonal().mean() + 1e-12)
            function = torch.linalg.solve(products, found.T @ wanted)
        return (wanted - found @ function).square().mean()


def _create(teacher: dict) -> TimmModel:
    """The teacher without a head, for images of any size where it can take them."""
    arguments: dict[str, Any] = {**trunk_arguments(teacher.get("model_name", "")), **teacher, "num_classes": 0}
    file = arguments.pop("checkpoint_path", None)
    if not file:
        return create_backbone(arguments, setting="model.distillation.teacher")
    if not Path(file).is_file():
        raise InputError(f"model.distillation.teacher.checkpoint_path: no file {file}")
    weights = read_weights(file, "model.distillation.teacher.checkpoint_path")
    model = create_backbone({**arguments, "pretrained": False}, setting="model.distillation.teacher")
    names = list(model.state_dict())
    # A detector has its backbone under a longer name.
    for prefix in (key.removesuffix(names[0]) for key in weights if key.endswith(f".{names[0]}")):
        if all(prefix + name in weights for name in names):
            try:
                model.load_state_dict({name: weights[prefix + name] for name in names})
            except RuntimeError as error:
                raise InputError(f"model.distillation: {file} has another {teacher['model_name']}: {error}") from error
            return model
    try:
        return create_backbone(arguments, init_from=file, setting="model.distillation.teacher")
    except InputError as error:
        raise InputError(f"model.distillation.teacher.checkpoint_path: {error}") from error
