"""MetaLA vision backbones: importing this package registers its models with timm and does nothing else."""

from typing import TYPE_CHECKING

from .deploy import export
from .models import MetaLAViT, add_weights, load

if TYPE_CHECKING:
    from .prediction import Predictor, predict

__version__ = "0.1.0"
__all__ = ["MetaLAViT", "Predictor", "__version__", "add_weights", "export", "load", "predict"]


def __getattr__(name: str) -> object:
    """What reads pictures is imported where it is asked for: it takes mmengine and albumentations along."""
    if name in ("Predictor", "predict"):
        from . import prediction

        return getattr(prediction, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
