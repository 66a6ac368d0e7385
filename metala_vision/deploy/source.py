"""What is to be deployed: a checkpoint of a run, a published folder, or a model of timm."""

from pathlib import Path
from typing import Any

import timm
from torch import nn

from metala_vision.dense.trunk import ANY_SIZE
from metala_vision.description import pretrained_cfg, read_described
from metala_vision.errors import InputError, near_matches
from metala_vision.models import load
from metala_vision.models.checkpoints import fill_older

TASKS = ("classification", "linearization")


def model_of(source: str | Path, **arguments: Any) -> tuple[nn.Module, dict]:
    """A model in evaluation mode, and what is known of it, with the keys of `metala_vision.description`.

    Args:
        source: a checkpoint that `tools/train.py` has written (its moving average where it has one), a folder that
            `tools/publish.py` has written, or the name of a model of timm.
        arguments: of `timm.create_model`, such as `pretrained=True` for a name, or `features_only=True`.

    Raises:
        InputError: none of these, a checkpoint of another task, arguments that the model does not take.
    """
    place = Path(source)
    if place.is_dir():
        model = load(place, **arguments)
        return model, _described(model, str(source), arguments)
    if place.is_file():
        return _from_checkpoint(place, arguments)
    if not timm.is_model(str(source)):
        raise InputError(
            f"source: got {str(source)!r}, which is no file, no folder and no model of timm"
            f"{near_matches(str(source), timm.list_models())}"
        )
    try:
        model = timm.create_model(str(source), **{**_any_size(str(source), arguments), **arguments}).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"source: {source}: {error}") from error
    return model, _described(model, str(source), arguments)


def _from_checkpoint(file: Path, arguments: dict) -> tuple[nn.Module, dict]:
    checkpoint, described = read_described(file, TASKS, "a classifier's or a linearized model's")
    name = described["architecture"]
    own = {**_any_size(name, described["model_args"]), **described["model_args"]}
    model = timm.create_model(name, **own, pretrained_cfg_overlay=pretrained_cfg(described))
    weights = dict(checkpoint.get("state_dict_ema") or checkpoint["state_dict"])
    fill_older(weights, model)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"source: {file} does not fit {name}: {error}") from error
    if arguments.get("features_only"):
        shown = timm.create_model(name, **own, **arguments)
        _inner(shown).load_state_dict(weights, strict=False)
        model = shown
    elif arguments:
        raise InputError(f"arguments: got {', '.join(arguments)}, but a checkpoint takes features_only alone")
    return model.eval(), described


def _inner(model: Any) -> Any:
    """The model in timm's wrapper of features."""
    return getattr(model, "model", model)


def _any_size(name: str, arguments: dict) -> dict:
    """Arguments with which a softmax ViT of timm takes images of any size; ours need none."""
    if {"img_size", "dynamic_img_size", "features_only"} & set(arguments) or name.startswith("linearized"):
        return {}
    own = {key: value for key, value in arguments.items() if key not in ("pretrained", "checkpoint_path")}
    try:
        timm.create_model(name, device="meta", **{**own, **ANY_SIZE})
    except (TypeError, ValueError):  # it knows no nominal size, or no other one
        return {}
    return dict(ANY_SIZE)


def _described(model: Any, name: str, arguments: dict) -> dict:
    cfg: dict = getattr(_inner(model), "pretrained_cfg", {})
    size = getattr(getattr(_inner(model), "patch_embed", None), "img_size", None)
    channels, *sides = cfg.get("input_size") or (3, 224, 224)
    return dict(
        task="features" if arguments.get("features_only") else "classification",
        architecture=cfg.get("architecture", name),
        num_classes=getattr(model, "num_classes", 0),
        label_names=list(cfg["label_names"]) if cfg.get("label_names") else None,
        input_size=[arguments.get("in_chans", channels), *(size or sides)],
        crop_pct=cfg.get("crop_pct"),
        interpolation=cfg.get("interpolation"),
        mean=list(cfg.get("mean") or ()),
        std=list(cfg.get("std") or ()),
    )
