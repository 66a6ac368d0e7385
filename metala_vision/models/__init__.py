"""Backbones and their timm entry points."""

from .metala_vit import MetaLAViT

__all__ = ["MetaLAViT"]
