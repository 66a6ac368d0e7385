"""Backbones and their timm entry points."""

from . import linear_deit, linearized_vit, metala_vit_sizes  # noqa: F401  (registers the models with timm)
from .metala_vit import MetaLAViT

__all__ = ["MetaLAViT"]
