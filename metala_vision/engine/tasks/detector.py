"""A detector for mmengine's Runner around any timm model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.registry import MODELS
from torch import Tensor

from metala_vision.data import BoxDataset
from metala_vision.data.drawing import objects_on
from metala_vision.dense import DETECTORS, detector
from metala_vision.errors import InputError

from .backbone import TimmModel
from .base import TaskModel, check_classes, first_sample, place
from .dense import IMAGENET_MEAN, IMAGENET_STD, DensePreprocessor, as_bytes, as_picture, check_types, create_trunk


@MODELS.register_module()
class ImageDetector(TaskModel):
    """A detector of `metala_vision.dense.detector`.

    Args:
        kind: "faster_rcnn", "mask_rcnn", "retinanet" or "fcos".
        backbone: arguments of `timm.create_model`, such as dict(model_name="metala_vit_tiny", drop_path_rate=0.1).
        num_classes: number of classes of objects.
        mean: of the images' channels in [0, 1] that the backbone expects.
        std: of the same.
        init_from: checkpoint that the backbone starts from, see `create_backbone`.
        grad_checkpointing: recompute the activations of the backbone in the backward pass, for less memory.
        compile: run the backbone with its pyramid through torch.compile.
        **options: of `metala_vision.dense.detector`.

    Raises:
        InputError: a part that does not fit; the message names the argument.
    """

    part = "detector"
    task = "detection"
    detector: Any  # torchvision's classes share attributes, but no base class

    def __init__(
        self,
        kind: str,
        backbone: dict,
        num_classes: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        init_from: str | None = None,
        grad_checkpointing: bool = False,
        compile: bool = False,
        data_preprocessor: dict | None = None,
        **options: Any,
    ):
        super().__init__(data_preprocessor or DensePreprocessor())
        if kind not in DETECTORS:
            raise InputError(f"model.kind: got {kind!r}, expected one of {DETECTORS}")
        trunk = create_trunk(backbone, init_from, grad_checkpointing)
        self.detector = detector(kind, trunk, num_classes, image_mean=list(mean), image_std=list(std), **options)
        self.kind, self.num_classes = kind, num_classes
        self.arguments, self.options, self.mean, self.std = dict(backbone), options, tuple(mean), tuple(std)
        if compile:
            self.detector.backbone.compile()

    @property
    def trunk(self) -> TimmModel:
        """The timm model."""
        return self.detector.backbone.trunk

    def check(self, datasets: Sequence[BoxDataset]) -> None:
        """Whether classes, masks and transforms of all splits fit the model and each other."""
        check_types(datasets, BoxDataset, "boxes; expected VOCDetection, CocoDetection or ShapesDetection")
        check_classes(datasets, self.num_classes, "model.num_classes")
        for dataset in datasets:
            where = place(dataset)
            if self.kind == "mask_rcnn" and not dataset.has_masks:
                raise InputError(f"data: {where} has no masks, which mask_rcnn learns; for COCO set masks=True")
            first = first_sample(dataset, where)
            size = dataset.load(first["target"]["index"]).shape[:2]
            if dataset.split != "train" and first["target"]["size"] != size:
                raise InputError(
                    f"data: the transform of {where} makes {first['target']['size']} of {size} pixels, and boxes "
                    f"would be found in other pixels than those of the files; leave resizing to model.min_size"
                )

    def seen_size(self, image: Tensor) -> tuple[int, int]:
        """The size to which torchvision's transform resizes and pads an image."""
        transform = self.detector.transform
        training = transform.training
        images, _ = transform.eval()([image.float() / 255])
        transform.train(training)
        return images.tensors.shape[-2], images.tensors.shape[-1]

    def preprocessing(self, evaluation: BoxDataset, image: Tensor) -> dict:
        """As the detector itself normalises and resizes."""
        return dict(interpolation="bilinear", mean=self.mean, std=self.std)

    def pictures(self, batch: dict, classes: Sequence[str], training: bool) -> list[tuple[np.ndarray, str]]:
        """The images with their objects drawn into them."""
        return [
            (as_picture(objects_on(as_bytes(image), target, classes)), str(target["image_id"]))
            for image, target in zip(batch["inputs"], batch["targets"])
        ]

    def forward(
        self,
        inputs: list[Tensor],
        targets: list[dict] | None = None,
        errors: list[str] | None = None,
        mode: str = "tensor",
    ) -> dict[str, Tensor] | list[dict]:
        """[C, H, W] images in [0, 1] -> losses, or for each image its detections with its target.

        Detections have boxes in pixels of the image, scores, labels from 1, and with mask_rcnn masks. The target is
        None where images come alone.
        """
        if mode == "loss":
            if not inputs:
                return self.zero_loss()
            if self.kind != "mask_rcnn" and targets is not None:  # without targets torchvision says what it needs
                targets = [{key: value for key, value in target.items() if key != "masks"} for target in targets]
            return {
                key if key.startswith("loss") else f"loss_{key}": value
                for key, value in self.detector(inputs, targets).items()
            }
        found = self.detector(inputs) if inputs else []
        if mode == "predict":
            found = [{**one, "labels": self.in_order(one["labels"] - 1) + 1} for one in found]
            unknown = [None] * len(found)  # of images that came alone
            return [dict(found=one, target=target) for one, target in zip(found, targets or unknown)]
        return found
