"""What the runner and its hooks ask of a model, whatever its task."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from timm.models import FeatureInfo
from torch import Tensor, nn

from metala_vision.description import listed, match_classes, plain
from metala_vision.errors import InputError

from .backbone import TimmModel

START = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")  # arguments that bring weights in


class TaskModel(BaseModel):
    """A model of a task for mmengine's Runner.

    Attributes:
        part: name of the attribute that is trained, averaged and saved. In checkpoints its parameters have the names
            that the attribute itself gives them, without `prefix`.
        task: what it learns, as a `description` has it.
        kind: of the model, likewise.
        arguments: of `timm.create_model` for its trunk.
        options: further ones of the model, as a `description` has them.
        class_order: index of each class of the data among the classes of the training; None where the order is the
            same. Predictions are in the order of the data.
    """

    part: str
    task: str
    kind: str | None = None
    arguments: dict
    options: dict
    class_order: Tensor | None = None

    @property
    def net(self) -> nn.Module:
        """What is trained, averaged and saved."""
        return getattr(self, self.part)

    @property
    def trunk(self) -> TimmModel:
        """The timm model in it, whose layers may have rates of their own."""
        raise NotImplementedError

    @property
    def prefix(self) -> str:
        """What the names of its parameters begin with, outside of checkpoints."""
        return f"{self.part}."

    def init_weights(self) -> None:
        """Does nothing: the constructors have initialised or loaded it all, and mmengine would do it again."""

    def check(self, datasets: Sequence) -> None:
        """Whether classes and images of all splits fit the model and each other.

        Raises:
            InputError: what does not fit.
        """
        raise NotImplementedError

    def pictures(self, batch: dict, classes: Sequence[str], training: bool) -> list[tuple[np.ndarray, str]]:
        """Each image of a preprocessed batch as [height, width, channels], floats in [0, 1] or uint8, with a title.

        What is to be learned about an image is drawn into it, or is its title.
        """
        raise NotImplementedError

    def describe(self, train: Any, evaluation: Any) -> dict:
        """What checkpoints say of the model and its images, see `metala_vision.description`."""
        image, tested = (first_sample(data, place(data))["image"] for data in (train, evaluation))
        trained = self.seen_size(image)
        model_args = {key: value for key, value in self.arguments.items() if key not in ("model_name", *START)}
        described = dict(
            task=self.task,
            kind=self.kind,
            options=self.options,
            architecture=self.arguments["model_name"],
            model_args=model_args,
            num_classes=len(train.classes),
            label_names=names_of(train),
            input_size=[len(image), *trained],
            crop_pct=None,
            interpolation=None,
            mean=[],
            std=[],
            grid=_grid(self.trunk, trained),
        )
        return plain({**described, **self.preprocessing(evaluation, tested)}, "description")

    def seen_size(self, image: Tensor) -> tuple[int, int]:
        """Height and width with which the trunk gets an image of the data in evaluation."""
        return image.shape[-2], image.shape[-1]

    def preprocessing(self, evaluation: Any, image: Tensor) -> dict:
        """mean and std of a `description`, and what else of `input_size`, `crop_pct` and `interpolation` is known.

        `image` is the first one of the dataset.
        """
        raise NotImplementedError

    def start(self, classes: Sequence[str] | None) -> None:
        """Matches the classes of the weights that training begins with to those of the data; None: they have no names.

        Raises:
            InputError: they cannot be brought together.
        """

    def take_order(self, order: Sequence[int]) -> None:
        """Predicts in another order of the classes than that of the training: `order` is `match_classes`' result."""
        same = list(order) == list(range(len(order)))
        self.class_order = None if same else torch.tensor(order)

    def in_order(self, found: Tensor) -> Tensor:
        """Turns class indices of the training into those of the data."""
        return found if self.class_order is None else self.class_order.argsort().to(found.device)[found]

    def resize(self, height: int, width: int) -> None:
        """Adapts the model to test images of this size in pixels, where it depends on that."""

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """Whether the model can be trained on square images of several sides in pixels.

        Raises:
            InputError: it cannot; the message says why.
        """
        raise InputError(
            f"train_dataloader.batch_sampler: a {type(self).__name__} does not take its sizes; only classifiers do"
        )

    def zero_loss(self) -> dict:
        """The loss of a batch without images, with zero gradients for all that is trained."""
        return dict(loss=sum(p.sum() for p in self.net.parameters() if p.requires_grad) * 0.0)


def task_of(model: nn.Module) -> TaskModel:
    """The task model in what may be a wrapper of distributed training.

    Raises:
        TypeError: there is none.
    """
    found = getattr(model, "module", model)
    if not isinstance(found, TaskModel):
        raise TypeError(f"model: got {type(found).__name__}, expected a TaskModel")
    return found


def check_classes(datasets: Sequence, num_classes: int, setting: str) -> None:
    """Whether all splits have the same classes, and as many as the model has; `setting` is what sets its number.

    Raises:
        InputError: they have not.
    """
    first = datasets[0]
    for dataset in datasets:
        if tuple(dataset.classes) != tuple(first.classes):
            which = f"data: the classes of {place(dataset)} differ from those of {first.split}"
            try:
                match_classes(first.classes, dataset.classes, which)
            except InputError as error:
                raise InputError(f"{error}; give both the same ones, whether used or not") from error
            raise InputError(
                f"{which}: they are the same in another order; give all splits one order (in COCO's form that of the "
                f"category ids)"
            )
    if len(first.classes) != num_classes:
        found = f" ({listed(names)})" if (names := names_of(first)) else ""
        raise InputError(
            f"model: num_classes is {num_classes}, but {place(first)} has {len(first.classes)} classes{found}; "
            f"give --num-classes {len(first.classes)}, or set {setting}={len(first.classes)}"
        )


def names_of(dataset: Any) -> list[str] | None:
    """What the classes of a dataset are called; None where they are mere numbers."""
    return [str(name) for name in dataset.classes] if getattr(dataset, "named", True) else None


def place(dataset: Any) -> str:
    """A dataset and its split, for messages."""
    return f"{type(dataset).__name__} ({dataset.split})"


def seen_by(transform: Any, image: Tensor, mean: Sequence[float], std: Sequence[float]) -> dict:
    """`TaskModel.preprocessing` of images [channels, height, width] that a transform has made for a test."""
    return dict(
        input_size=list(image.shape),
        crop_pct=getattr(transform, "crop_ratio", None),
        interpolation=getattr(transform, "interpolation", None),
        mean=mean,
        std=std,
    )


def _grid(trunk: TimmModel, size: tuple[int, int]) -> list[int] | None:
    """Rows and columns of the last map of an image."""
    info = getattr(trunk, "feature_info", None)
    if not info:
        return None
    strides = info.reduction() if isinstance(info, FeatureInfo) else [stage["reduction"] for stage in info]
    return [-(-side // strides[-1]) for side in size]


def first_sample(dataset: Any, where: str) -> dict:
    """The first sample that can be read, of the first hundred, with its image as the model will get it.

    Raises:
        InputError: none of them can be read, or the transform fails.
    """
    for index in range(min(len(dataset), 100)):
        try:
            sample = dataset[index]
        except InputError:
            raise
        except Exception as error:  # a transform is anybody's code
            raise InputError(f"data: the transform of {where} fails: {type(error).__name__}: {error}") from error
        if "image" in sample:
            return sample
    raise InputError(f"data: the first images of {where} are all unreadable: {sample['error']}")
