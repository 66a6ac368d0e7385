"""An image classifier for mmengine's Runner around any timm model."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor
from torch.nn import functional as F

from metala_vision.data import LabelledImages
from metala_vision.errors import InputError

from .backbone import TimmModel, create_backbone, heads_of, start_heads
from .base import TaskModel, check_classes, first_sample, place, seen_by
from .distillation import KINDS, Distillation
from .mixing import BatchMixup
from .token_distillation import TokenDistillation, tokens_and_logits


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
class ImageClassifier(TaskModel):
    """Cross-entropy training of a timm model.

    Args:
        backbone: arguments of `timm.create_model`, such as dict(model_name="metala_vit_tiny", num_classes=10).
        mean: of the images' channels in [0, 1], see `ImagePreprocessor`.
        std: of the same.
        label_smoothing: share of the target spread over all classes.
        mixup: arguments of `timm.data.Mixup`, such as dict(mixup_alpha=0.8, cutmix_alpha=1.0); None for none.
        distillation: arguments of `Distillation`, such as dict(teacher=dict(model_name=...), kind="hard"), or of
            `TokenDistillation` with kind="tokens".
        init_from: checkpoint to start from, see `create_backbone`.
        train_only_head: a linear probe: everything but the classifier is frozen, and runs as in evaluation.
        grad_checkpointing: recompute activations in the backward pass, for less memory.
        compile: run the model through torch.compile.
        channels_last: keep images and convolution weights with channels last in memory.

    Raises:
        InputError: a part that does not fit; the message names the argument.
    """

    part = "backbone"
    task = "classification"
    backbone: TimmModel

    def __init__(
        self,
        backbone: dict,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        label_smoothing: float = 0.0,
        mixup: dict | None = None,
        distillation: dict | None = None,
        init_from: str | None = None,
        train_only_head: bool = False,
        grad_checkpointing: bool = False,
        compile: bool = False,
        channels_last: bool = False,
        data_preprocessor: dict | None = None,
    ):
        super().__init__(data_preprocessor or ImagePreprocessor(mean, std))
        if not 0 <= label_smoothing < 1:
            raise InputError(f"model: label_smoothing is {label_smoothing!r}, expected a number in [0, 1)")
        self.backbone = create_backbone(backbone, init_from)
        self.arguments, self.options = dict(backbone), {}
        self.started_from = init_from or backbone.get("checkpoint_path")
        self.mean, self.std = tuple(mean), tuple(std)
        self.label_smoothing = label_smoothing
        self.train_only_head = train_only_head
        in_chans = getattr(self.backbone, "in_chans", None)
        if in_chans is not None and not len(mean) == len(std) == in_chans:
            raise InputError(
                f"model: mean has {len(mean)} and std {len(std)} channels, expected {in_chans}, the model's in_chans"
            )
        num_classes = self.backbone.num_classes
        self.mixup = BatchMixup(mixup, num_classes, label_smoothing) if mixup else None
        self.distillation = _distillation(distillation, num_classes, mean, std) if distillation else None
        if grad_checkpointing:
            self.backbone.set_grad_checkpointing()
        if train_only_head:
            self.backbone.requires_grad_(False)
            for head in heads_of(self.backbone):
                head.requires_grad_(True)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone.to(memory_format=self.memory_format)
        self.tokens_and_logits = tokens_and_logits
        if compile:
            self.backbone.compile()
            self.tokens_and_logits = torch.compile(tokens_and_logits)

    @property
    def trunk(self) -> TimmModel:
        """The timm model."""
        return self.backbone

    def check(self, datasets: Sequence[LabelledImages]) -> None:
        """Whether classes, channels and transforms of all splits fit the model and each other."""
        check_classes(datasets, self.backbone.num_classes, "model.backbone.num_classes")
        for dataset in datasets:
            where = place(dataset)
            image = first_sample(dataset, where)["image"]
            in_chans = getattr(self.backbone, "in_chans", image.shape[0])
            if image.shape[0] != in_chans:
                raise InputError(
                    f"model: in_chans is {in_chans}, but the images of {where} have {image.shape[0]} channels"
                )
        if isinstance(self.distillation, TokenDistillation):
            self.distillation.check(first_sample(datasets[0], place(datasets[0]))["image"])

    def preprocessing(self, evaluation: LabelledImages, image: Tensor) -> dict:
        """As the transform of a test and the preprocessor have it."""
        return seen_by(evaluation.transform, image, self.mean, self.std)

    def start(self, classes: Sequence[str] | None) -> None:
        """Puts the rows of a checkpoint's head, and the logits of a teacher, into the order of the data's classes."""
        if self.started_from:
            start_heads(self.backbone, self.started_from, classes)
        if isinstance(self.distillation, Distillation):
            self.distillation.take_classes(classes)

    def pictures(self, batch: dict, classes: Sequence[str], training: bool) -> list[tuple[np.ndarray, str]]:
        """The images, mixed in training, with their classes; a sequence of pixels is folded into a square of rows."""
        images, labels = batch["inputs"], batch["labels"]
        shares = F.one_hot(labels, len(classes)).float()
        if training and self.mixup is not None:
            images, shares = self.mixup(images, labels)
        images = images * self.data_preprocessor.std + self.data_preprocessor.mean
        if images.shape[2] == 1:  # a line of one pixel's height would not be seen
            side = math.ceil(math.sqrt(images.shape[3]))
            images = F.pad(images, (0, side * side - images.shape[3])).unflatten(3, (side, side)).squeeze(2)
        return list(zip(images.permute(0, 2, 3, 1).cpu().numpy(), (_title(row, classes) for row in shares.cpu())))

    def resize(self, height: int, width: int) -> None:
        """Resamples the position embedding for test images of this size, if it does not follow their size by itself."""
        dynamic = getattr(self.backbone, "dynamic_img_size", False)  # our models keep the grid of their training
        if hasattr(self.backbone, "set_input_size") and not dynamic:
            self.backbone.set_input_size(img_size=(height, width))

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """One image of each size goes through the model: what it refuses it refuses now."""
        training = self.backbone.training
        self.backbone.eval()
        weight = next(self.backbone.parameters())
        try:
            with torch.no_grad():
                for size in sizes:
                    # Not a call: a compiled model would be compiled for a batch of one
                    self.backbone.forward(weight.new_zeros(1, len(self.mean), size, size))
                    if isinstance(self.distillation, TokenDistillation):
                        self.distillation.check(weight.new_zeros(len(self.mean), size, size))
        except InputError:
            raise
        except Exception as error:  # a model is anybody's code
            raise InputError(
                f"train_dataloader.batch_sampler: {self.arguments['model_name']} takes no images of {size} pixels: "
                f"{error}. timm's ViTs need model.backbone.dynamic_img_size=True, and multiples of their patches"
            ) from error
        finally:
            self.backbone.train(training)

    def train(self, mode: bool = True) -> "ImageClassifier":
        super().train(mode)
        if self.train_only_head:
            self.backbone.eval()
            for head in heads_of(self.backbone):
                head.train(mode)
        return self

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, errors: list[str] | None = None, mode: str = "tensor"
    ) -> Tensor | dict[str, Tensor] | list[dict]:
        """[B, C, H, W] normalised images -> logits [B, classes], dict(loss), or one dict(logits, labels) per batch.

        A batch whose images were all unreadable has B = 0: its loss is zero and has zero gradients.
        """
        if len(inputs) == 0 and mode != "tensor":
            if mode == "loss":
                return self.zero_loss()
            return [dict(logits=inputs.new_empty(0, self.backbone.num_classes), labels=labels)]
        if mode == "loss":
            if labels is None:
                raise InputError("labels: got None, expected the class of each image, which the loss is computed of")
            return dict(loss=self._loss(inputs, labels))
        logits = self.backbone(inputs.contiguous(memory_format=self.memory_format))
        if mode == "predict":
            logits = logits if self.class_order is None else logits[:, self.class_order.to(logits.device)]
            return [dict(logits=logits.float(), labels=labels)]
        return logits

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with smoothed labels, or with the mixed ones that mixup has smoothed already."""
        smoothing = self.label_smoothing
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
            smoothing = 0.0
        prepared = images.contiguous(memory_format=self.memory_format)
        if isinstance(self.distillation, TokenDistillation):
            tokens, logits = self.tokens_and_logits(self.backbone, prepared)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
            return self.distillation.loss(images, tokens, loss)
        logits = self.backbone(prepared).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        return loss if self.distillation is None else self.distillation.loss(images, logits, loss)


def _distillation(
    options: dict, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Distillation | TokenDistillation:
    kind = options.get("kind", "hard")
    if kind not in (*KINDS, "tokens"):
        raise InputError(f"model.distillation: kind is {kind!r}, expected one of {(*KINDS, 'tokens')}")
    try:
        if kind == "tokens":
            return TokenDistillation(**{k: v for k, v in options.items() if k != "kind"}, mean=mean, std=std)
        return Distillation(**options, num_classes=num_classes, mean=mean, std=std)
    except TypeError as error:
        raise InputError(f"model.distillation: {error}") from error


def _title(shares: torch.Tensor, classes: Sequence[str]) -> str:
    """The class, or the two classes of a mixed image with their shares."""
    top = shares.topk(min(2, len(classes)))
    first, *second = [(classes[i], share) for i, share in zip(top.indices.tolist(), top.values.tolist())]
    if not second or second[0][1] < 0.02:
        return first[0]
    return f"{first[0]} {100 * first[1]:.0f} %\n{second[0][0]} {100 * second[0][1]:.0f} %"
