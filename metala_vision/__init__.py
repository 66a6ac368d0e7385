"""MetaLA vision backbones: importing this package registers its models with timm and does nothing else."""

from .models import MetaLAViT

__version__ = "0.1.0"
__all__ = ["MetaLAViT", "__version__"]
