"""Compares the sizes that annotations state with those of the pictures."""

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metala_vision.errors import InputError

from .boxes import Troubles
from .orientation import Size, WrongSizeError, check_size, shown_size

# Reading a header takes 0.03 to 0.1 ms from memory, and milliseconds from a network disk: minutes for COCO.
LOOKED_AT = 100
REFUSED = "pictures refused that are not of the size they were annotated at"


def stated_size(height: Any, width: Any, file: str, troubles: Troubles) -> Size | None:
    """The size that a file states, in numbers or text; None where it states none, or zeros, as some tools write.

    Anything but whole positive numbers is counted in `troubles` and gives None too.
    """
    if all(value in (None, "", 0, "0") for value in (height, width)):
        return None
    try:
        size = float(height), float(width)
    except (TypeError, ValueError):
        size = math.nan, math.nan
    if all(value.is_integer() and value > 0 for value in size):
        return int(size[0]), int(size[1])
    troubles.add("sizes that are none", file)
    return None


def size_of_picture(path: Path, follow: bool) -> Size | None:
    """The size of a picture whose annotations state none; None if it cannot be opened, which is reported on loading."""
    with contextlib.suppress(Exception):  # Pillow raises almost anything on broken files
        return shown_size(path, follow)
    return None


def check_sizes(
    argument: str, paths: Sequence[Path], stated: Callable[[int], Size | None], troubles: Troubles, max_share: float
) -> None:
    """Checks the headers of a sample of the pictures, spread over the dataset, before any picture is needed.

    Each picture of another size than stated is counted in `troubles`. Every picture is checked when it is loaded.

    Args:
        argument: name of the argument that gives the pictures, for messages.
        paths: paths of all pictures.
        stated: gives the size at which the picture of an index was annotated.
        troubles: where faults are counted.
        max_share: share of the pictures that may have another size.

    Raises:
        InputError: more pictures have another size.
    """
    looked_at = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), LOOKED_AT)).astype(int)).tolist()
    wrong = []
    for i in looked_at:
        size = stated(i)
        if size is None:
            continue
        try:
            check_size(paths[i], size)
        except WrongSizeError as error:
            wrong.append(f"{paths[i]}: {error}")
            troubles.add(REFUSED, str(paths[i]))
        except Exception:  # no image: this is reported when it is loaded
            continue
    allowed = max_share * len(looked_at)
    if len(looked_at) < len(paths):
        allowed += 3 * math.sqrt(allowed)  # a sample may have a few more by chance
    if len(wrong) > allowed:
        raise InputError(
            f"{argument}: {len(wrong)} of {len(looked_at)} pictures looked at are not of the size they were annotated "
            f"at, more than max_share={max_share:g}; the first: {wrong[0]}. Resize the annotations as the pictures "
            f"were, or give the pictures that were annotated"
        )
