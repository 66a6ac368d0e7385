"""MetaLA vision backbones: importing this package registers its models with timm and does nothing else."""

from .deploy import export
from .models import MetaLAViT, add_weights, load

__version__ = "0.1.0"
__all__ = ["MetaLAViT", "__version__", "add_weights", "export", "load"]
