"""Building blocks of the backbones."""

from .local_conv import CausalConv, GridConv
from .metala import MetaLA
from .swiglu import SwiGLU

__all__ = ["CausalConv", "GridConv", "MetaLA", "SwiGLU"]
