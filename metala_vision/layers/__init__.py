"""Building blocks of the backbones."""

from .local_conv import CausalConv, GridConv
from .metala import MetaLA
from .swiglu import SwiGLU, adds_in_one_go

__all__ = ["CausalConv", "GridConv", "MetaLA", "SwiGLU", "adds_in_one_go"]
