"""timm models by name, from scratch or from a checkpoint of another head, image size or patch size."""

from pathlib import Path

import timm
from timm.models import load_state_dict
from torch import nn

from metala_vision.errors import InputError, near_matches


def create_backbone(arguments: dict, init_from: str | None = None) -> nn.Module:
    """`timm.create_model(**arguments)`.

    Args:
        arguments: with `model_name`.
        init_from: a checkpoint to start from, of a run (its moving average where it has one) or of timm. The classifier
            is new where the number of classes differs; position embeddings are resampled, and what else timm adapts
            for the model. Anything else must fit.

    Raises:
        InputError: a model timm does not know, an argument the model does not take, a checkpoint that does not fit.
    """
    if not isinstance(arguments, dict):
        raise InputError(f"model: got {arguments!r}, expected a dict with model_name")
    arguments = dict(arguments)
    name = arguments.pop("model_name", None)
    if not isinstance(name, str) or not timm.is_model(name):
        raise InputError(f"model: unknown model_name {name!r}{near_matches(str(name), timm.list_models())}")
    path = init_from or arguments.get("checkpoint_path")
    if path and not Path(path).is_file():
        raise InputError(f"model: {name}: no file {path}")
    try:
        return timm.create_model(name, **arguments) if init_from is None else _started(name, arguments, init_from)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        where = f" with init_from {init_from}" if init_from is not None else ""
        raise InputError(f"model: {name}{where}: {error}") from error


def _started(name: str, arguments: dict, path: str) -> nn.Module:
    """A model that timm has loaded as it loads its own pretrained weights, strictly, before its head is exchanged."""
    try:
        weights = load_state_dict(path, weights_only=True)
    except Exception as error:  # whatever a file that is no checkpoint leads to
        raise InputError(f"model: init_from {path} cannot be read: {type(error).__name__}: {error}") from error
    cfg = timm.get_pretrained_cfg(name)
    first = cfg.classifier if isinstance(cfg.classifier, str) else cfg.classifier[0]
    classes = weights[f"{first}.weight"].shape[0] if f"{first}.weight" in weights else 0
    wanted = arguments.pop("num_classes", cfg.num_classes)
    overlay = dict(file=str(path), num_classes=classes)
    model = timm.create_model(name, num_classes=classes, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    if wanted != classes:
        model.reset_classifier(wanted)
    return model
