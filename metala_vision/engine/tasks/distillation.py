"""Distillation from any timm model (DeiT, arXiv 2012.12877, section 4), without a distillation token."""

import logging
from collections.abc import Sequence

import timm
import torch
from mmengine.logging import print_log
from timm.models import resolve_pretrained_cfg
from torch import Tensor
from torch.nn import functional as F

from metala_vision.description import description_in, match_classes
from metala_vision.errors import InputError

from .backbone import TimmModel, create_backbone
from .frozen import AsTaught, Frozen, check_teacher

KINDS = ("hard", "soft")


class Distillation:
    """A frozen teacher beside the model: it is in no checkpoint, no optimiser and no gradient exchange.

    Args:
        teacher: arguments of `timm.create_model` for a trained model: with `pretrained=True` or a `checkpoint_path`.
        kind: "hard", cross-entropy with the teacher's decision, or "soft", divergence from its distribution.
        weight: share of the distillation in the loss, in (0, 1].
        temperature: of both distributions in soft distillation.
        img_size: of the teacher's images, see `AsTaught`.
        teacher_mean: of the same.
        teacher_std: of the same.

    Raises:
        InputError: an unknown kind, a number out of range, a teacher without weights or of other classes.
    """

    def __init__(
        self,
        teacher: dict,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        kind: str = "hard",
        weight: float = 0.5,
        temperature: float = 1.0,
        img_size: int | None = None,
        teacher_mean: tuple[float, ...] | None = None,
        teacher_std: tuple[float, ...] | None = None,
    ):
        if kind not in KINDS:
            raise InputError(f"model.distillation: kind is {kind!r}, expected one of {KINDS}")
        if not temperature > 0:
            raise InputError(f"model.distillation: temperature is {temperature!r}, expected a positive number")
        check_teacher(teacher, weight)
        self.kind, self.weight, self.temperature = kind, weight, temperature
        self.checkpoint = teacher.get("checkpoint_path")
        self.order: list[int] | None = None
        self.teacher = Frozen(_create(teacher, num_classes))
        cfg = self.teacher.model.pretrained_cfg
        self.as_taught = AsTaught(cfg, mean, std, img_size, teacher_mean, teacher_std)

    def take_classes(self, classes: Sequence[str] | None) -> None:
        """Puts the teacher's classes in the order of the data's, by name.

        Raises:
            InputError: the teacher has other classes.
        """
        names = description_in(self.checkpoint).get("label_names") if self.checkpoint else None
        if names is not None and classes is not None:
            order = match_classes(names, classes, "model.distillation: the teacher has other classes than the data")
            self.order = None if order == list(range(len(order))) else order
            return
        whose = "the teacher" if names is None else "the data"
        print_log(
            f"distillation: {whose} has no class names: their order is taken to be the same", "current", logging.INFO
        )

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] as the model gets them -> the teacher's logits [B, classes]."""
        logits = self.teacher.to(images.device)(self.as_taught(images)).float()
        return logits if self.order is None else logits[:, self.order]

    def loss(self, images: Tensor, logits: Tensor, base: Tensor) -> Tensor:
        """The weighted sum of `base`, the loss against the labels, and of the loss against the teacher."""
        taught = self.teach(images)
        if self.kind == "hard":
            distilled = F.cross_entropy(logits, taught.argmax(1))
        else:
            t = self.temperature
            distilled = F.kl_div(
                F.log_softmax(logits / t, 1), F.log_softmax(taught / t, 1), reduction="batchmean", log_target=True
            ) * (t * t)
        return (1 - self.weight) * base + self.weight * distilled


def _create(teacher: dict, num_classes: int) -> TimmModel:
    """The teacher with its trained classifier, which timm would replace where the number of classes differs."""
    name, known = teacher.get("model_name"), teacher.get("num_classes", num_classes)
    pretrained = teacher.get("pretrained") and not teacher.get("checkpoint_path")  # a checkpoint must fit exactly
    if pretrained and isinstance(name, str) and timm.is_model(name):
        chosen = {key: teacher.get(key) for key in ("pretrained_cfg", "pretrained_cfg_overlay")}
        chosen["pretrained_cfg"] = chosen["pretrained_cfg"] or name.partition(".")[2]
        try:
            known = resolve_pretrained_cfg(name.partition(".")[0], **chosen).num_classes
        except RuntimeError as error:
            raise InputError(f"model.distillation: teacher {name!r}: {error}") from error
    if not known == teacher.get("num_classes", known) == num_classes:
        raise InputError(f"model.distillation: the teacher was trained on {known} classes, the model has {num_classes}")
    return create_backbone({**teacher, "num_classes": num_classes}, setting="model.distillation.teacher")
