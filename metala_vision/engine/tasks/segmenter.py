"""A segmenter for mmengine's Runner around any timm model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.registry import MODELS
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from metala_vision.data import MaskDataset
from metala_vision.data.drawing import classes_on
from metala_vision.data.masks import IGNORE
from metala_vision.dense import SEGMENTERS, class_map, segmenter
from metala_vision.errors import InputError

from .backbone import TimmModel
from .base import TaskModel, check_classes, first_sample, place
from .dense import IMAGENET_MEAN, IMAGENET_STD, DensePreprocessor, as_bytes, as_picture, check_types, create_trunk


@MODELS.register_module()
class ImageSegmenter(TaskModel):
    """A segmenter of `metala_vision.dense.segmenter`, trained by cross-entropy.

    Args:
        kind: "unet", "fpn", "upernet", "segformer" or "dpt".
        backbone: arguments of `timm.create_model`, such as dict(model_name="metala_vit_tiny", drop_path_rate=0.1).
        num_classes: number of classes of pixels.
        mean: of the images' channels in [0, 1] that the backbone expects.
        std: of the same.
        init_from: checkpoint that the backbone starts from, see `create_backbone`.
        short_side: pixels that the shorter side of test images is resized to; None leaves them as they are. The classes
            found have the size of the original image.
        window: side of the windows that test images are run in; None runs them whole.
        stride: pixels from one window to the next; None is two thirds of a window.
        grad_checkpointing: recompute the activations of the backbone in the backward pass, for less memory.
        compile: run the model through torch.compile.
        **options: of `metala_vision.dense.segmenter`.

    Raises:
        InputError: a part that does not fit; the message names the argument.
    """

    part = "segmenter"
    task = "segmentation"

    def __init__(
        self,
        kind: str,
        backbone: dict,
        num_classes: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        init_from: str | None = None,
        short_side: int | None = None,
        window: int | None = None,
        stride: int | None = None,
        grad_checkpointing: bool = False,
        compile: bool = False,
        data_preprocessor: dict | None = None,
        **options: Any,
    ):
        super().__init__(data_preprocessor or DensePreprocessor())
        if kind not in SEGMENTERS:
            raise InputError(f"model.kind: got {kind!r}, expected one of {SEGMENTERS}")
        if window is not None and window < 32:
            raise InputError(f"model.window: got {window!r}, expected None or at least 32 pixels")
        stride = (2 * window // 3 if window else None) if stride is None else stride
        if stride is not None and not (window and 0 < stride <= window):
            raise InputError(f"model.stride: got {stride!r}, expected None, or 1 to the window's {window} pixels")
        if short_side is not None and short_side < 32:
            raise InputError(f"model.short_side: got {short_side!r}, expected None or at least 32 pixels")
        self.short_side, self.window, self.stride = short_side, window, stride
        trunk = create_trunk(backbone, init_from, grad_checkpointing)
        self.segmenter = segmenter(kind, trunk, num_classes, **options)
        self.kind, self.num_classes = kind, num_classes
        self.arguments, self.options = dict(backbone), options
        self.normalisation = dict(mean=tuple(mean), std=tuple(std))
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        if compile:
            self.segmenter.compile()

    @property
    def trunk(self) -> TimmModel:
        """The timm model."""
        return self.segmenter.trunk

    def check(self, datasets: Sequence[MaskDataset]) -> None:
        """Whether classes and transforms of all splits fit the model and each other."""
        check_types(datasets, MaskDataset, "masks; expected MaskFolder or ShapesSegmentation")
        check_classes(datasets, self.num_classes, "model.num_classes")
        for dataset in datasets:
            first_sample(dataset, place(dataset))

    def preprocessing(self, evaluation: MaskDataset, image: Tensor) -> dict:
        """As the segmenter itself normalises and resizes."""
        sizes = dict(short_side=self.short_side, window=self.window, stride=self.stride)
        return dict(interpolation="bilinear" if self.short_side else None, **self.normalisation, **sizes)

    def pictures(self, batch: dict, classes: Sequence[str], training: bool) -> list[tuple[np.ndarray, str]]:
        """The images with their classes laid over them."""
        return [
            (as_picture(classes_on(as_bytes(image), mask.cpu().numpy(), len(classes))), str(index))
            for image, mask, index in zip(batch["inputs"], batch["masks"], batch["indices"])
        ]

    def forward(
        self,
        inputs: list[Tensor],
        masks: list[Tensor] | None = None,
        indices: list[int] | None = None,
        errors: list[str] | None = None,
        mode: str = "tensor",
    ) -> Tensor | dict[str, Tensor] | list[dict]:
        """[C, H, W] images in [0, 1] -> dict(loss), or for each image its classes [H, W] with its mask and index.

        Mask and index are None where images come alone. In training all images have one size. A single training image
        is taken twice where there is a BatchNorm, which needs two values per channel and would fail where a map is
        pooled to one pixel. The loss is a mean and stays the same.
        """
        inputs = [(image - self.mean) / self.std for image in inputs]
        if mode == "predict":
            sizes = (self.short_side, self.window, self.stride)
            found = [self.in_order(class_map(self.segmenter, image[None], *sizes)) for image in inputs]
            unknown = [None] * len(found)  # of images that came alone
            known = zip(found, masks or unknown, indices or unknown)
            return [dict(found=f, mask=mask, index=index) for f, mask, index in known]
        if mode == "loss" and not inputs:
            return self.zero_loss()
        masks = masks or []
        if mode == "loss" and len(inputs) == 1 and any(isinstance(m, _BatchNorm) for m in self.segmenter.modules()):
            inputs, masks = inputs * 2, masks * 2
        shapes = {tuple(image.shape) for image in inputs}
        if len(shapes) > 1:
            raise InputError(f"images of one batch differ in shape, {sorted(shapes)}: end the transform with a crop")
        logits = self.segmenter(torch.stack(inputs)).float()
        if mode == "tensor":
            return logits
        target = torch.stack(masks)
        loss = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
        return dict(loss=loss / (target != IGNORE).sum().clamp(min=1))
