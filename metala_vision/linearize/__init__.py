"""A pretrained softmax ViT of timm made linear in the number of patches."""

from .calibrate import calibrate
from .convert import linearize

__all__ = ["calibrate", "linearize"]
