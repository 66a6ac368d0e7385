"""The models of checkpoints that say what they are of."""

from typing import Any

import timm
from torch import Tensor, nn

from .checkpoints import fill_older


def described_model(described: dict, weights: dict[str, Tensor], **arguments: Any) -> nn.Module:
    """A classifier or a linearized model with the weights of a checkpoint, in evaluation mode.

    Args:
        described: the checkpoint's description, see `metala_vision.description`.
        weights: its `state_dict`, by the names of the timm model; what an older one lacks is added in place.
        arguments: of `timm.create_model`, beside those of the description, such as `features_only=True`.

    Raises:
        TypeError, ValueError, RuntimeError, AssertionError: what timm and torch raise where weights, description and
            arguments do not fit each other.
    """
    name, own = described["architecture"], dict(described["model_args"])
    if described["task"] == "classification":
        own["num_classes"] = described["num_classes"]
    else:
        own.setdefault("num_classes", 0)
    later = {key: arguments.pop(key) for key in ("features_only", "out_indices") if key in arguments}
    model = timm.create_model(name, **{**own, **arguments})
    fill_older(weights, model)
    model.load_state_dict(weights)
    if later.get("features_only"):
        # timm loads before it wraps: then some of its wrappers give the weights other names.
        overlay = dict(state_dict=weights, num_classes=own["num_classes"])
        model = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, **{**own, **arguments, **later}
        )
    return model.eval()
