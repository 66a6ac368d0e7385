"""What the runner and its hooks ask of a model, whatever its task."""

from collections.abc import Sequence

import numpy as np
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import Dataset

from metala_vision.errors import InputError


class TaskModel(BaseModel):
    """A model of a task for mmengine's Runner.

    Attributes:
        part: name of the attribute that is trained, averaged and saved: in checkpoints its parameters have the names
            that they have in it.
    """

    part: str

    @property
    def net(self) -> nn.Module:
        """What is trained, averaged and saved."""
        return getattr(self, self.part)

    @property
    def trunk(self) -> nn.Module:
        """The timm model in it, whose layers may have rates of their own."""
        raise NotImplementedError

    @property
    def prefix(self) -> str:
        """What the names of its parameters begin with, outside of checkpoints."""
        return f"{self.part}."

    def init_weights(self) -> None:
        """Nothing: the constructors have initialised it all, or loaded it. mmengine would do it again."""

    def check(self, datasets: Sequence) -> None:
        """Whether classes and images of all splits fit the model and each other.

        Raises:
            InputError: what does not fit.
        """
        raise NotImplementedError

    def pictures(self, batch: dict, classes: Sequence[str], training: bool) -> list[tuple[np.ndarray, str]]:
        """Each image of a preprocessed batch as [height, width, channels], floats in [0, 1] or uint8, with a title.

        What is to be learned of it is drawn into it, or is its title.
        """
        raise NotImplementedError

    def resize(self, size: int) -> None:
        """Adapts the model to test images of `size` x `size` pixels, where it depends on that."""

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
    for dataset in datasets:
        where = f"{type(dataset).__name__} ({dataset.split})"
        if len(dataset.classes) != num_classes:
            raise InputError(
                f"model: num_classes is {num_classes}, but {where} has {len(dataset.classes)} classes; "
                f"set {setting}={len(dataset.classes)}"
            )
        if tuple(dataset.classes) != tuple(datasets[0].classes):
            raise InputError(f"data: the classes of {where} differ from those of {datasets[0].split}")


def first_sample(dataset: Dataset, where: str) -> dict:
    """One with its image as the model will get it, out of the first hundred.

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
