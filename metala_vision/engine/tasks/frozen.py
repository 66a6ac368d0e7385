"""A model beside the one that is trained."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from metala_vision.errors import InputError

from .backbone import TimmModel


class Frozen:
    """A teacher that is in no checkpoint, no optimiser and no gradient exchange, and always in evaluation mode."""

    def __init__(self, model: TimmModel):
        self.model = model.eval().requires_grad_(False)

    def to(self, device: torch.device) -> TimmModel:
        """The model, on a device."""
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        return self.model


def check_teacher(teacher: object, weight: object) -> None:
    """Whether a teacher has weights, and a distillation a share of the loss.

    Raises:
        InputError: it is no dict with `pretrained` or `checkpoint_path`, or the share is not in (0, 1].
    """
    if not isinstance(weight, int | float) or not 0 < weight <= 1:
        raise InputError(f"model.distillation: weight is {weight!r}, expected a number in (0, 1]")
    if not isinstance(teacher, dict):
        raise InputError(f"model.distillation: teacher is {teacher!r}, expected a dict with model_name")
    if not teacher.get("pretrained") and not teacher.get("checkpoint_path"):
        raise InputError("model.distillation: the teacher has no weights; set its pretrained or checkpoint_path")


class AsTaught:
    """Turns images as the model gets them into images as a teacher knows them.

    Args:
        cfg: the teacher's pretrained_cfg.
        mean: of the channels of the model's images in [0, 1].
        std: their standard deviation.
        img_size: side that images are resized to for the teacher; None leaves them.
        teacher_mean: mean of the channels of the images that the teacher was trained with. None is what `cfg` says, or
            the model's own where that has another number of channels.
        teacher_std: their standard deviation, likewise.

    Raises:
        InputError: a mean or a deviation of another number of channels than the model's.
    """

    def __init__(
        self,
        cfg: dict,
        mean: Sequence[float],
        std: Sequence[float],
        img_size: int | None = None,
        teacher_mean: Sequence[float] | None = None,
        teacher_std: Sequence[float] | None = None,
    ):
        self.img_size = img_size
        fits = len(cfg.get("mean") or ()) == len(mean)
        teacher_mean = teacher_mean or (cfg["mean"] if fits else mean)
        teacher_std = teacher_std or (cfg["std"] if fits else std)
        if not len(mean) == len(std) == len(teacher_mean) == len(teacher_std):
            raise InputError(
                f"model.distillation: teacher_mean has {len(teacher_mean)} channels, teacher_std {len(teacher_std)}, "
                f"expected {len(mean)}, those of the model's mean"
            )
        ours, theirs = (
            [torch.tensor(values).view(-1, 1, 1) for values in pair]
            for pair in ((mean, std), (teacher_mean, teacher_std))
        )
        self.scale = ours[1] / theirs[1]
        self.shift = (ours[0] - theirs[0]) / theirs[1]

    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> the same images with the teacher's normalisation, and of its size."""
        images = images * self.scale.to(images.device) + self.shift.to(images.device)
        if self.img_size is not None and images.shape[-2:] != (self.img_size, self.img_size):
            images = F.interpolate(images, (self.img_size, self.img_size), mode="bicubic", antialias=True)
        return images
