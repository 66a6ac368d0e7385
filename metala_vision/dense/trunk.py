"""timm models as trunks: no head, images of any size, and one map of features out of them."""

from typing import Any

import timm
from timm.models import FeatureInfo
from torch import Tensor, nn

from metala_vision.errors import InputError, near_matches

ANY_SIZE = dict(dynamic_img_size=True, dynamic_img_pad=True)  # arguments of timm's softmax ViTs; ours needs none


def trunk_arguments(name: str) -> dict:
    """Arguments of `timm.create_model` that take the head off a model and let its images have any height and width.

    Raises:
        InputError: timm does not know the model; the message has near matches.
    """
    if not isinstance(name, str) or not timm.is_model(name):
        raise InputError(f"backbone: unknown model {name!r}{near_matches(str(name), timm.list_models())}")
    arguments = dict(num_classes=0)
    try:
        timm.create_model(name, device="meta", **arguments, **ANY_SIZE)
    except TypeError:  # it knows no nominal size, or none of these arguments
        return arguments
    return {**arguments, **ANY_SIZE}


def create_trunk(backbone: str | nn.Module, **arguments) -> nn.Module:
    """A timm model by name with `trunk_arguments` and `arguments`; a module is returned as it is."""
    if isinstance(backbone, nn.Module):
        return backbone
    return timm.create_model(backbone, **{**trunk_arguments(backbone), **arguments})


class FeatureMap(nn.Module):
    """One map of features of a timm model.

    Args:
        trunk: a model with `forward_intermediates`, or one made with `features_only=True`.
        index: number of the block or stage whose output is the map; -1 is the last. If the trunk can be pruned, later
            blocks are taken off it.

    Attributes:
        channels: channels of the map.
        stride: image pixels of one step of the map.

    Raises:
        InputError: the trunk is neither, or does not have the index.
    """

    trunk: Any  # timm's models share methods, but no class

    def __init__(self, trunk: nn.Module, index: int = -1):
        super().__init__()
        info = getattr(trunk, "feature_info", None)
        self.has_intermediates = hasattr(trunk, "forward_intermediates")
        if not info or not (self.has_intermediates or isinstance(info, FeatureInfo)):
            raise InputError(
                f"backbone: {type(trunk).__name__} has neither forward_intermediates nor features_only's feature_info; "
                f"expected a timm model that has one of them"
            )
        channels = info.channels() if isinstance(info, FeatureInfo) else [stage["num_chs"] for stage in info]
        strides = info.reduction() if isinstance(info, FeatureInfo) else [stage["reduction"] for stage in info]
        if not -len(channels) <= index < len(channels):
            raise InputError(f"index: got {index}, but {type(trunk).__name__} has {len(channels)} maps of features")
        self.index = index % len(channels)
        self.channels, self.stride = channels[index], strides[index]
        self.normalises = False
        self.trunk = trunk
        if self.has_intermediates:
            self.normalises = isinstance(getattr(trunk, "norm", None), nn.Module)
            if hasattr(trunk, "prune_intermediate_layers"):  # parameters without gradients stop distributed training
                self.trunk.prune_intermediate_layers([self.index], prune_norm=False, prune_head=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, height, width] -> [B, channels, rows, columns]."""
        if not self.has_intermediates:
            return self.trunk(x)[self.index]
        options = dict(norm=True) if self.normalises else {}
        return self.trunk.forward_intermediates(x, indices=[self.index], intermediates_only=True, **options)[0]
