"""Building blocks of the backbones."""

from .local_conv import CausalConv, GridConv
from .metala import MetaLA
from .patch_embed import PatchEmbed
from .swiglu import SwiGLU, adds_in_one_go

__all__ = ["CausalConv", "GridConv", "MetaLA", "PatchEmbed", "SwiGLU", "adds_in_one_go"]
