"""Building blocks of the backbones."""

from .local_conv import CausalConv, GridConv
from .metala import MetaLA
from .patch_embed import PatchEmbed
from .residual import mixer_branch, mlp_branch
from .swiglu import SwiGLU

__all__ = ["CausalConv", "GridConv", "MetaLA", "PatchEmbed", "SwiGLU", "mixer_branch", "mlp_branch"]
