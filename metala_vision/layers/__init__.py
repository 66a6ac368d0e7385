"""Building blocks of the backbones."""

from .local_conv import CausalConv, GridConv
from .metala import MetaLA
from .patch_embed import PatchEmbed
from .residual import add_mixer, add_mlp
from .swiglu import SwiGLU

__all__ = ["CausalConv", "GridConv", "MetaLA", "PatchEmbed", "SwiGLU", "add_mixer", "add_mlp"]
