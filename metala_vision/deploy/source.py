"""What is to be deployed: a checkpoint of a run, a published folder, a model of timm, or a module."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models._features import FeatureGetterNet
from torch import nn

from metala_vision.dense import load_dense
from metala_vision.dense.loading import BUILDERS
from metala_vision.dense.trunk import ANY_SIZE
from metala_vision.description import read_described
from metala_vision.errors import InputError, near_matches
from metala_vision.models import load
from metala_vision.models.described import described_model

from .dense_graph import DENSE, dense_graph, trunk_of

TASKS = ("classification", "linearization", *BUILDERS)


def model_of(source: str | Path, **arguments: Any) -> tuple[nn.Module, dict]:
    """A model in evaluation mode, for images of any size where it can take them, and what is known of it.

    Args:
        source: a checkpoint that `tools/train.py` has written (its moving average where it has one), a folder that
            `tools/publish.py` has written, or the name of a model of timm.
        arguments: of `timm.create_model`, such as `pretrained=True` for a name, or `features_only=True`.

    Returns:
        The model, which takes images [B, C, H, W], and a dict with keys of `metala_vision.description`: `task`
        ("features" with `features_only`), `architecture`, `num_classes`, `label_names`, `input_size` in pixels,
        `crop_pct`, `crop_mode`, `interpolation`, `mean` and `std`, with those of `dense_graph` for detectors and
        segmenters. A detector is a `DetectionGraph`.

    Raises:
        InputError: none of these, a checkpoint of another task, arguments that the model does not take, weights that
            cannot be read or fetched.
    """
    place = Path(source)
    if (place.is_dir() or place.is_file()) and "pretrained" in arguments:
        raise InputError(f"pretrained: got it for {source}, which has weights of its own; leave it out")
    try:
        if place.is_file():
            return _from_checkpoint(place, dict(arguments))
        if place.is_dir():
            model = load(place, **{**_any_size(*_published(place), arguments), **arguments})
        elif timm.is_model(str(source)):
            model = timm.create_model(str(source), **{**_any_size(str(source), {}, arguments), **arguments}).eval()
        else:
            raise InputError(
                f"source: got {str(source)!r}, which is no file, no folder and no model of timm"
                f"{near_matches(str(source), timm.list_models())}"
            )
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:  # timm and the hub raise them all
        raise InputError(f"source: {source}: {error}") from error
    return model, describe(model, arguments.get("in_chans"))


def graph_of(model: nn.Module) -> tuple[nn.Module, dict]:
    """A module as files have it, and what is known of it; raises what `dense_graph` raises."""
    if not isinstance(model, DENSE):
        return model, describe(model)
    of_trunk = describe(trunk_of(model))
    return dense_graph(model, {**of_trunk, "label_names": None, "crop_pct": None, "interpolation": None})


def describe(model: Any, in_chans: int | None = None) -> dict:
    """What timm knows of a model, with keys of `metala_vision.description`; empty where it is none of timm's.

    Args:
        model: of timm, or its features.
        in_chans: channels of the images where they are not those of `pretrained_cfg`.
    """
    inner = model.model if isinstance(model, FeatureGetterNet) else model
    cfg: dict = getattr(inner, "pretrained_cfg", None) or {}
    if not cfg:
        return {}
    size = getattr(getattr(inner, "patch_embed", None), "img_size", None)
    channels, *sides = cfg.get("input_size") or (3, 224, 224)
    channels = in_chans or getattr(inner, "in_chans", None) or channels
    return dict(
        task="classification" if hasattr(model, "get_classifier") else "features",
        architecture=cfg.get("architecture"),
        num_classes=getattr(model, "num_classes", 0),
        label_names=list(cfg["label_names"]) if cfg.get("label_names") else None,
        input_size=[channels, *(size or sides)],
        crop_pct=cfg.get("crop_pct"),
        crop_mode=cfg.get("crop_mode"),
        interpolation=cfg.get("interpolation"),
        mean=_of_channels(cfg.get("mean") or (), channels),
        std=_of_channels(cfg.get("std") or (), channels),
    )


def _of_channels(values: Sequence[float], channels: int) -> list[float]:
    """A number for each channel: of images with others than the model's own, their mean, as timm has it."""
    if not values or len(values) == channels:
        return list(values)
    return [sum(values) / len(values)] * channels


def _from_checkpoint(file: Path, arguments: dict) -> tuple[nn.Module, dict]:
    what = "a classifier's, a linearized model's, a detector's or a segmenter's"
    checkpoint, described = read_described(file, TASKS, what)
    if described["task"] in BUILDERS:
        if arguments:
            raise InputError(f"arguments: got {', '.join(arguments)} for a {described['kind']}, which takes none")
        return dense_graph(*load_dense(file))
    weights = checkpoint.get("state_dict_ema") or checkpoint.get("state_dict")
    if not weights:
        raise InputError(f"source: {file} holds no state_dict")
    sizes = _any_size(described["architecture"], described["model_args"], arguments)
    model = described_model(described, dict(weights), **{**sizes, **arguments})
    return model, {**described, "task": "features"} if arguments.get("features_only") else described


def _published(folder: Path) -> tuple[str, dict]:
    """Architecture and arguments of a published folder; `load` says what is wrong with one that has none."""
    config = folder / "config.json"
    found = json.loads(config.read_text()) if config.is_file() else {}
    return found.get("architecture", ""), found.get("model_args") or {}


def _any_size(name: str, own: dict, arguments: dict) -> dict:
    """Arguments with which a softmax ViT of timm takes images of any size; ours need none."""
    loading = ("pretrained", "checkpoint_path", "features_only", "out_indices")
    given = {key: value for key, value in {**own, **arguments}.items() if key not in loading}
    if "dynamic_img_size" in given or not timm.is_model(name) or name.startswith("linearized"):
        return {}
    try:
        timm.create_model(name, device="meta", **{**given, **ANY_SIZE})
    except (TypeError, ValueError):  # it knows no nominal size, or no other one
        return {}
    return dict(ANY_SIZE)
