"""Building blocks of the backbones."""

from .block import MetaLABlock
from .local_conv import CausalConv, GridConv
from .mixers import MIXERS, MetaLA, register_mixer
from .patch_embed import PatchEmbed
from .swiglu import SwiGLU

__all__ = ["MIXERS", "CausalConv", "GridConv", "MetaLA", "MetaLABlock", "PatchEmbed", "SwiGLU", "register_mixer"]
