"""timm models by name, from scratch or from a checkpoint of another head, image size or patch size."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import timm
import torch
from mmengine.dist import broadcast
from mmengine.logging import print_log
from timm.models import load_state_dict
from torch import nn

from metala_vision.description import description_in, match_classes
from metala_vision.errors import InputError, near_matches

TimmModel: TypeAlias = Any  # timm's models share methods, but no class

# What to set where a checkpoint is missing and there is no other to give.
WITHOUT = {
    "model.backbone": "model.backbone.checkpoint_path=None for a start from scratch",
    "model.teacher": "model.teacher.pretrained=True for timm's weights",
    "model.distillation.teacher": "model.distillation=None for training without a teacher",
}


def create_backbone(arguments: dict, init_from: str | None = None, setting: str = "model.backbone") -> TimmModel:
    """`timm.create_model(**arguments)`.

    Args:
        arguments: with `model_name`.
        init_from: a checkpoint to start from, of a run (its moving average where it has one) or of timm. The classifier
            is new where the number of classes differs. timm resamples position embeddings, and adapts whatever else it
            can adapt for the model. All other weights must fit.
        setting: name of the arguments in a config, for messages: a key of `WITHOUT`.

    Raises:
        InputError: a model timm does not know, an argument the model does not take, a checkpoint that does not fit.
    """
    if not isinstance(arguments, dict):
        raise InputError(f"model: got {arguments!r}, expected a dict with model_name")
    arguments = dict(arguments)
    name = arguments.pop("model_name", None)
    if not isinstance(name, str) or not timm.is_model(name):
        raise InputError(f"model: unknown model_name {name!r}{near_matches(str(name), timm.list_models())}")
    if init_from is not None and not Path(init_from).is_file():
        raise InputError(
            f"model.init_from: no file {init_from}; give another checkpoint of {name}, or model.init_from=None for "
            f"a start from scratch"
        )
    path = arguments.get("checkpoint_path")
    if path and not Path(path).is_file():
        raise InputError(
            f"{setting}.checkpoint_path: no file {path}; give another checkpoint of {name}, or {WITHOUT[setting]}"
        )
    if path and not str(path).endswith((".npz", ".npy")):  # timm's own form of JAX weights
        read_weights(path, f"{setting}.checkpoint_path")
    weights = {} if init_from is None else read_weights(init_from, "model.init_from")
    try:
        if init_from is None:
            return timm.create_model(name, **arguments)
        return _started(name, arguments, init_from, weights)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        if init_from is None:
            raise InputError(f"model: {name}: {error}") from error
        trained = description_in(init_from).get("architecture", name)
        if trained != name:
            raise InputError(
                f"model: {init_from} was trained as {trained}, the config has {name}; set "
                f"{setting}.model_name={trained}, or model.init_from=None"
            ) from error
        raise InputError(f"model: {name} with init_from {init_from}: {_shortened(str(error))}") from error


def _shortened(text: str, most: int = 8) -> str:
    """The first lines of a message: torch lists every tensor that does not fit."""
    lines = text.splitlines()
    more = [f"and {len(lines) - most} lines more"] if len(lines) > most else []
    return "\n".join(lines[:most] + more)


def read_weights(path: str, setting: str) -> dict:
    """The weights in a checkpoint, the average where it has one; `setting` is what named it, for messages.

    Raises:
        InputError: no such file, or none that can be read.
    """
    try:
        return load_state_dict(path, weights_only=True)
    except OSError as error:
        raise InputError(f"{setting}: {path} cannot be read: {error}") from error
    except Exception as error:  # a file that is no checkpoint may raise anything; some messages advise to run it
        raise InputError(
            f"{setting}: {path} cannot be read: it is no whole file of torch.save or safetensors, or holds more than "
            f"tensors, numbers, strings and containers of them, which could run code"
        ) from error


def _started(name: str, arguments: dict, path: str, weights: dict) -> TimmModel:
    """A model whose weights timm loads strictly, as it loads its own pretrained ones, before the head is replaced."""
    cfg = timm.get_pretrained_cfg(name)
    first = cfg.classifier if isinstance(cfg.classifier, str) else cfg.classifier[0]
    classes = weights[f"{first}.weight"].shape[0] if f"{first}.weight" in weights else 0
    wanted = arguments.pop("num_classes", cfg.num_classes)
    overlay = dict(file=str(path), num_classes=classes)
    model = timm.create_model(name, num_classes=classes, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    if wanted != classes:
        model.reset_classifier(wanted)
    return model


def heads_of(backbone: TimmModel) -> list[nn.Module]:
    """The classifier, or the two of a distilled model."""
    found = backbone.get_classifier()
    return list(found) if isinstance(found, tuple) else [found]


@torch.no_grad()
def start_heads(backbone: TimmModel, file: str, classes: Sequence[str] | None) -> None:
    """Fits a head that was loaded from a file to the classes of the data, by their names.

    It is changed in place, since optimisers hold its parameters. If the names are in another order, its rows are
    reordered. If they are other names, it is initialised anew; for another number of classes this was done when the
    model was made. The log says what was done.

    Args:
        backbone: a model that has been started from the file.
        file: a checkpoint.
        classes: of the data, or None where they are not named.

    Raises:
        InputError: the names are in another order, and the head is of a kind whose rows cannot be reordered.
    """
    described = description_in(file)
    names = described.get("label_names")
    if described and described["num_classes"] != backbone.num_classes:
        _say(f"{file} is of {described['num_classes']} classes, the data of {backbone.num_classes}: the head is new")
        return
    if names is None or classes is None:
        whose = file if names is None else "the data"
        _say(f"{whose} has no class names: if it has as many classes, its head is kept, in the order of the data")
        return
    try:
        order = match_classes(names, classes, "other classes")
    except InputError as error:
        fresh = copy.deepcopy(backbone)
        fresh.reset_classifier(backbone.num_classes)
        for head, new in zip(heads_of(backbone), heads_of(fresh)):
            head.load_state_dict(new.state_dict())
            for parameter in head.parameters():  # every process has drawn weights of its own
                broadcast(parameter.data)
        _say(f"{file} is of {error}: the head is new")
        return
    if order == list(range(len(order))):
        return
    for head in heads_of(backbone):
        if not isinstance(head, nn.Linear | nn.Conv2d):
            raise InputError(
                f"model: {file} has the classes in another order, and a {type(head).__name__} as head, which cannot be "
                f"put in order; give the data the order {', '.join(names)}"
            )
        for parameter in head.parameters():
            parameter.copy_(parameter[order])
    _say(f"{file} has the classes in another order: the rows of its head are put in that of the data")


def _say(text: str) -> None:
    print_log(f"init_from: {text}", logger="current", level=logging.INFO)
