"""Checks that a checkpoint's classes agree with those of the data, and its preprocessing with that of a test."""

import logging

from mmengine.logging import print_log
from torch.utils.data import Dataset

from metala_vision.description import listed, match_classes
from metala_vision.engine.tasks.base import names_of, place
from metala_vision.errors import InputError


def class_order(described: dict, dataset: Dataset, file: str) -> list[int] | None:
    """The index that each class of a dataset has in a checkpoint.

    None, with a message in the log, where the dataset or the checkpoint has no class names.

    Raises:
        InputError: the classes are not the same; the message lists them.
    """
    names, classes = described.get("label_names"), names_of(dataset)
    if names is None or classes is None:
        whose = place(dataset) if classes is None else file
        _say(f"{whose} has no class names: the order of the classes is taken to be the same", logging.INFO)
        return None
    order = match_classes(
        names, classes, f"checkpoint: the classes of {place(dataset)} are not those that {file} was trained on"
    )
    if order != list(range(len(order))):
        _say(f"{file} has the classes of {place(dataset)} in another order: they are matched by name", logging.INFO)
    return order


def check_goes_on(described: dict, dataset: Dataset, file: str, resumed: bool) -> None:
    """Checks that training can go on from all of a checkpoint's weights, those of the head included.

    Raises:
        InputError: the checkpoint has the classes of the data in another order or, if a run is resumed, other classes.
    """
    names, classes = described.get("label_names"), names_of(dataset)
    if names is None or classes is None:
        _say(f"{file if names is None else place(dataset)} has no class names: they are not compared", logging.INFO)
        return
    option = "--resume" if resumed else "load_from"
    try:
        order = match_classes(
            names, classes, f"{option}: the classes of {place(dataset)} are not those that {file} was trained on"
        )
    except InputError as error:
        if resumed:
            raise
        _say(f"{error}; the weights of their outputs are kept", logging.WARNING)
        return
    if order != list(range(len(order))):
        instead = "" if resumed or described["task"] != "classification" else f", or set model.init_from={file} instead"
        raise InputError(
            f"{option}: {place(dataset)} has the classes that {file} was trained on in another order; give them the "
            f"order {listed(names)}{instead}"
        )


def warn_of_preprocessing(trained: dict, now: dict, file: str) -> None:
    """Warns where the images of a test are preprocessed in another way than those of the training; sizes may differ."""
    if not trained:
        return
    pairs = {key: (trained[key], now[key]) for key in ("mean", "std", "interpolation")}
    pairs["channels"] = (trained["input_size"][0], now["input_size"][0])
    found = [
        f"{key} is {there} in {file} and {here} in the config" for key, (there, here) in pairs.items() if there != here
    ]
    if found:
        _say(f"the images are prepared otherwise than those of the training: {'; '.join(found)}", logging.WARNING)


def _say(text: str, level: int) -> None:
    print_log(text, logger="current", level=level)
