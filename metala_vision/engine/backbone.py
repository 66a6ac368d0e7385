"""timm models by name, from scratch or from a checkpoint of another head, image size or patch size."""

from pathlib import Path

import timm
from timm.models import load_state_dict
from torch import nn

from metala_vision.errors import InputError, near_matches

from .checkpoint import read_checkpoint


def create_backbone(arguments: dict, init_from: str | None = None) -> nn.Module:
    """`timm.create_model(**arguments)`.

    Args:
        arguments: with `model_name`.
        init_from: a checkpoint to start from, of a run (its moving average where it has one) or of timm. The classifier
            is new where the number of classes differs; position embeddings are resampled. Anything else must fit.

    Raises:
        InputError: a model timm does not know, an argument the model does not take, a checkpoint that does not fit.
    """
    arguments = dict(arguments)
    name = arguments.pop("model_name", None)
    if not isinstance(name, str) or not timm.is_model(name):
        raise InputError(f"model: unknown model_name {name!r}{near_matches(str(name), timm.list_models())}")
    if init_from is not None:
        arguments.update(_start_from(name, init_from))
    try:
        return timm.create_model(name, **arguments)
    except FileNotFoundError as error:
        raise InputError(f"model: {name}: no file {arguments.get('checkpoint_path')}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        where = f" with init_from {init_from}" if init_from is not None else ""
        raise InputError(f"model: {name}{where}: {error}") from error


def _start_from(name: str, path: str) -> dict:
    """What makes timm load a file as it loads its own pretrained weights, which adapts them to the model."""
    read_checkpoint(path)  # says what is wrong with a file that is none
    weights = load_state_dict(path, weights_only=True)
    classifier = timm.get_pretrained_cfg(name).classifier
    first = classifier if isinstance(classifier, str) else classifier[0]
    overlay = dict(file=str(Path(path)))
    if f"{first}.weight" in weights:
        overlay["num_classes"] = weights[f"{first}.weight"].shape[0]
    return dict(pretrained=True, pretrained_cfg_overlay=overlay)
