"""MetaLA vision backbones: importing this package registers its models with timm and does nothing else."""

from pathlib import Path

_checkout = Path(__file__).resolve().parent.parent
if not Path(__file__).with_name("kernels").is_dir() and (_checkout / "kernels" / "ops.py").is_file():
    # Run from a checkout that was never installed: `metala_vision.kernels` lives at its root.
    __path__.append(str(_checkout))

__version__ = "0.1.0"

from .models import MetaLAViT  # noqa: E402  (after the package path is complete)

__all__ = ["MetaLAViT", "__version__"]
