"""Building blocks of the backbones."""

from .block import MetaLABlock
from .local_conv import CausalConv, GridConv
from .metala import MetaLA
from .patch_embed import PatchEmbed
from .swiglu import SwiGLU

__all__ = ["CausalConv", "GridConv", "MetaLA", "MetaLABlock", "PatchEmbed", "SwiGLU"]
