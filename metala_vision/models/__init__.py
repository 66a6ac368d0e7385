"""Backbones and their timm entry points."""

from . import entry_points, linear_deit  # noqa: F401  (registers the models with timm)
from .metala_vit import MetaLAViT

__all__ = ["MetaLAViT"]
