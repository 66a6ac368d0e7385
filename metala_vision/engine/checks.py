"""What is checked before the first step: nothing may fail an hour later for it."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.data import Dataset

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
