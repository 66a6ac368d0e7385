"""What a checkpoint says of itself beside its weights: its task, its classes in their order, what images it expects.

A checkpoint of a run has this description under `KEY`. It consists of strings, numbers, lists and dicts alone. Fields
that timm's pretrained_cfg has too bear timm's names.

    task            "classification", "detection", "segmentation" or "sequences"
    kind            such as "faster_rcnn" or "upernet"; None for a classifier
    options         further arguments of `metala_vision.dense.detector` or `segmenter`
    architecture    name of the timm model, or "metala_lm"
    model_args      further arguments of `timm.create_model`, with which it was trained
    num_classes     how many it tells apart
    label_names     what they are called, in the order of its outputs (a detector's label 1 is the first), or None where
                    the training data names none
    input_size      channels, height and width of a test image, or, for tasks that train on images of any size, of a
                    training image as the timm model gets it
    crop_pct        share of the short side that the central crop of a test keeps; None where there is no such crop
    interpolation   how a test image is resized; None where the data do not say it
    mean, std       mean and deviation of the channels of images in [0, 1]
    short_side, window, stride
                    what a segmenter's test images are resized to and cut into; None where they are not
    grid            rows and columns of the tokens (the last map) of a training image; None where the model has no map
"""

import argparse
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import InputError

KEY = "description"
PRETRAINED_CFG = ("num_classes", "label_names", "input_size", "crop_pct", "interpolation", "mean", "std")
SHOWN = 10  # names in one message


def read_description(checkpoint: dict) -> dict:
    """The description in a checkpoint; empty where there is none, as in a bare state_dict.

    Raises:
        InputError: `KEY` holds something else.
    """
    found = checkpoint.get(KEY, {})
    if isinstance(found, torch.Tensor):  # a parameter of this name in a bare state_dict
        return {}
    names = found.get("label_names") if isinstance(found, dict) else 0
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"checkpoint: its {KEY} is {found!r}, expected a dict whose label_names are a list of names")
    return found


def description_in(file: str | Path) -> dict:
    """The description in a checkpoint file, without reading the weights; empty where there is none.

    Raises:
        InputError: the file is one of torch.save in form, and cannot be read as one without running what is in it.
    """
    if not zipfile.is_zipfile(file):  # not a file that a run has written
        return {}
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # which is in checkpoints of timm's trainer
            checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises almost anything on other files
        raise InputError(f"file: {file} is no checkpoint that can be read") from error
    return read_description(checkpoint) if isinstance(checkpoint, dict) else {}


def read_described(file: str | Path, tasks: Sequence[str], what: str) -> tuple[dict, dict]:
    """A checkpoint file of a run, and its description.

    Args:
        file: that tools/train.py has written.
        tasks: those that it may be of.
        what: they are called, for messages.

    Raises:
        InputError: no such file, no checkpoint, or one that does not say that it is of these tasks.
    """
    if not Path(file).is_file():
        raise InputError(f"file: no file {file}")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises almost anything on other files
        raise InputError(f"file: {file} is no checkpoint that can be read") from error
    described = read_description(checkpoint) if isinstance(checkpoint, dict) else {}
    if described.get("task") not in tasks:
        raise InputError(
            f"file: {file} is of the task {described.get('task')!r}, expected {what} checkpoint that tools/train.py "
            f"has written"
        )
    return checkpoint, described


def pretrained_cfg(description: dict) -> dict:
    """What timm wants to know of a model's weights: `timm.create_model(..., pretrained_cfg_overlay=...)` takes it."""
    return {key: description[key] for key in PRETRAINED_CFG}


def match_classes(have: Sequence[str], want: Sequence[str], which: str) -> list[int]:
    """The index in `have` of each class in `want`; [0, 1, 2, ...] if both have the same order.

    Args:
        have: names, in the order of a model's outputs.
        want: names, in the order of the labels that are to be predicted.
        which: the beginning of the message, which says where `have` and `want` come from.

    Raises:
        InputError: the names differ, or the order differs and two classes have the same name.
    """
    if list(have) == list(want):
        return list(range(len(have)))
    known, wanted = Counter(have), Counter(want)
    apart = {"missing": known - wanted, "unknown": wanted - known}
    if any(apart.values()):
        parts = [f"{what}: {listed(list(names.elements()))}" for what, names in apart.items() if names]
        raise InputError(f"{which}: {'; '.join(parts)}")
    twice = [name for name, count in known.items() if count > 1]
    if twice:
        raise InputError(f"{which}: another order, and two classes are called {listed(twice)}; give each its own name")
    return [list(have).index(name) for name in want]


def listed(names: Sequence[str]) -> str:
    """Names as one text, which spells out at most `SHOWN` of them."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def size_name(img_size: int | tuple[int, int]) -> str:
    """A size in pixels as options and tables have it: "160" for a square, "320x160" for height and width."""
    return "x".join(map(str, img_size)) if isinstance(img_size, tuple) else str(img_size)


def plain(value: object, name: str) -> Any:
    """`value` in Python's own dicts, lists, strings and numbers; tuples become lists.

    Raises:
        InputError: `value` contains something else; the message names it by `name`.
    """
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, name) for item in value]
    raise InputError(f"{name}: got a {type(value).__name__}, expected a number, a string, or a list or dict of them")
