"""What is checked before the first step: nothing may fail an hour later for it."""

import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from metala_vision.data import LabelledImages
from metala_vision.errors import InputError


@contextmanager
def config_errors() -> Iterator[None]:
    """What registries and constructors say of a config's types and arguments, as InputError; our own bugs pass."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        origin: BaseException = error
        while origin.__context__ is not None:
            origin = origin.__context__
        place = traceback.extract_tb(origin.__traceback__)[-1].filename
        # A TypeError or KeyError counts where the registry calls and looks up, not where a constructor goes wrong.
        if isinstance(error, (KeyError, TypeError)) and f"{os.sep}registry{os.sep}" not in place:
            raise
        raise InputError(f"config: {error.args[0] if error.args else error}") from error


def first_image(dataset: LabelledImages, where: str) -> torch.Tensor:
    """An image as the model will get it, out of the first hundred.

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
            return sample["image"]
    raise InputError(f"data: the first images of {where} are all unreadable: {sample['error']}")


def check_data(datasets: Sequence[LabelledImages], model: nn.Module) -> None:
    """Whether classes, channels and transforms of all splits fit the model and each other.

    Raises:
        InputError: what does not fit.
    """
    for dataset in datasets:
        where = f"{type(dataset).__name__} ({dataset.split})"
        if len(dataset.classes) != model.num_classes:
            raise InputError(
                f"model: num_classes is {model.num_classes}, but the labels of {where} run from 0 to "
                f"{len(dataset.classes) - 1}; set model.backbone.num_classes={len(dataset.classes)}"
            )
        if dataset.classes != datasets[0].classes:
            raise InputError(f"data: the classes of {where} differ from those of {datasets[0].split}")
        image = first_image(dataset, where)
        in_chans = getattr(model, "in_chans", image.shape[0])
        if image.shape[0] != in_chans:
            raise InputError(f"model: in_chans is {in_chans}, but the images of {where} have {image.shape[0]} channels")
