"""Mixup and cutmix, timm's, for batches of any size."""

import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from metala_vision.errors import InputError


class BatchMixup:
    """timm's Mixup. It needs even batches: the last image of an odd batch stays as it is.

    Args:
        options: arguments of `timm.data.Mixup`, such as dict(mixup_alpha=0.8, cutmix_alpha=1.0).
        num_classes: of the targets.
        label_smoothing: share of the target spread over all classes.

    Raises:
        InputError: an argument that timm's Mixup does not take, or neither mixup nor cutmix switched on.
    """

    def __init__(self, options: dict, num_classes: int, label_smoothing: float):
        try:
            self.mixup = Mixup(**options, num_classes=num_classes, label_smoothing=label_smoothing)
        except (TypeError, AssertionError) as error:
            raise InputError(f"model.mixup: {error}") from error
        if self.mixup.mixup_alpha <= 0 and self.mixup.cutmix_alpha <= 0:
            raise InputError("model.mixup: mixup_alpha and cutmix_alpha are both 0; leave mixup out instead")
        if self.mixup.mode not in ("batch", "pair", "elem"):
            raise InputError(f"model.mixup: mode is {self.mixup.mode!r}, expected 'batch', 'pair' or 'elem'")

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W], changed in place, and labels [B] -> images and targets [B, num_classes].

        Draws from numpy's global generator, which the run seeds at each step.
        """
        even = len(images) - len(images) % 2
        mixed, targets = [], []
        if even:
            part, target = self.mixup(images[:even], labels[:even])
            mixed.append(part)
            targets.append(target)
        if even < len(images):
            mixed.append(images[even:])
            targets.append(mixup_target(labels[even:], self.mixup.num_classes, smoothing=self.mixup.label_smoothing))
        return torch.cat(mixed), torch.cat(targets).to(images.device)
