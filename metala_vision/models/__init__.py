"""Backbones and their timm entry points."""

from . import linear_deit, linearized_vit, metala_vit_sizes  # noqa: F401  (registers the models with timm)
from .linearized_vit import LinearizedViT
from .metala_vit import MetaLAViT
from .published import add_weights, load

__all__ = ["LinearizedViT", "MetaLAViT", "add_weights", "load"]
