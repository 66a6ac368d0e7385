"""Softmax attention of a pretrained model made linear in the number of patches."""

from .attention import LinearizedAttention
from .block import LinearizedBlock
from .forms import FORMS

__all__ = ["FORMS", "LinearizedAttention", "LinearizedBlock"]
