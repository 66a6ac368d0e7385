"""What a model costs: its matrix products alone, and times taken side by side."""

from .products import Product, matrix_products, replay
from .timing import Spread, interleaved

__all__ = ["Product", "Spread", "interleaved", "matrix_products", "replay"]
