"""Weights from a folder that `tools/publish.py` has written, or from the hub: by their place, or by a tag of timm."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import _registry
from timm.models._pretrained import PretrainedCfg
from torch import nn

from metala_vision.errors import InputError

# Arguments that may be given with the tag, or change nothing that is loaded.
FREE = ("num_classes", "img_size", "in_chans", "drop_rate", "drop_path_rate", "proj_drop_rate")
HUB = "hf-hub:"  # as timm calls it
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as timm looks for them


def load(source: str | Path, **arguments: Any) -> nn.Module:
    """A published model, with its weights, in evaluation mode.

    Args:
        source: a folder with config.json and model.safetensors, or "OWNER/NAME" on the hub; "hf-hub:OWNER/NAME" where
            there is a folder OWNER here too.
        arguments: of `timm.create_model`, beside those of the model: `num_classes=5`, `features_only=True`.

    Raises:
        InputError: a folder without a config.json or weights, or no folder where there seems to be meant one.
    """
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise InputError(
                f"source: {source} has no config.json; expected a folder that tools/publish.py has written"
            )
        if not any((Path(source) / name).is_file() for name in WEIGHTS):
            raise InputError(
                f"source: {source} has no {WEIGHTS[0]}; expected a folder that tools/publish.py has written"
            )
        place = f"local-dir:{source}"
    else:
        name = str(source).removeprefix(HUB)
        if name.count("/") != 1:
            raise InputError(f"source: got {str(source)!r}, which is no folder; expected one, or OWNER/NAME on the hub")
        if name == str(source) and (isinstance(source, Path) or Path(source).parent.is_dir()):
            raise InputError(f"source: no folder {source}; of a model on the hub write {HUB}OWNER/NAME")
        place = HUB + name
    return timm.create_model(place, pretrained=True, **arguments).eval()


def add_weights(name: str, folder: str | Path) -> None:
    """Makes the weights of a folder known to timm under a tag: `timm.create_model(name, pretrained=True)` loads them.

    Args:
        name: model and tag, such as "metala_vit_nano.imagenette".
        folder: one that `tools/publish.py` has written.

    Raises:
        InputError: no such model or folder, or weights of a model that its name alone does not make.
    """
    architecture, _, tag = name.partition(".")
    if not tag or not timm.is_model(architecture):
        raise InputError(f"name: got {name!r}, expected a model of timm and a tag, such as metala_vit_nano.imagenette")
    file, weights = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    if not file.is_file() or not weights.is_file():
        raise InputError(f"folder: {folder} has no config.json and model.safetensors; see tools/publish.py")
    config = json.loads(file.read_text())
    if config["architecture"] != architecture:
        raise InputError(f"name: got {name!r}, but {folder} has weights of {config['architecture']}")
    others = {key: value for key, value in config.get("model_args", {}).items() if key not in FREE}
    if "global_pool" in others:  # timm writes it into every config.json
        with torch.device("meta"):
            if others["global_pool"] == getattr(timm.create_model(architecture), "global_pool", None):
                others.pop("global_pool")
    if others:
        raise InputError(
            f"folder: {folder} is of a {architecture} with {others}; use metala_vision.load({str(folder)!r})"
        )
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in config["pretrained_cfg"].items()}
    names = {"label_names": config["label_names"]} if config.get("label_names") else {}
    cfg = PretrainedCfg(**{**known, **names, "architecture": architecture, "tag": tag, "file": str(weights.resolve())})
    if name not in _registry._model_with_tags[architecture]:
        _registry._model_with_tags[architecture].append(name)
    _registry._model_pretrained_cfgs[name] = cfg
    _registry._model_has_pretrained.add(name)
