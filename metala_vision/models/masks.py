"""Masks of tokens, which timm's softmax models take and linear attention has none of."""

import torch
from torch import Tensor


def refuse_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    """ValueError for a mask, or for causal attention."""
    asked = attn_mask is not None or is_causal
    if not torch.jit.is_scripting():
        asked = isinstance(attn_mask, Tensor) or is_causal is True  # and no symbol of FX for what may be asked
    if asked:
        raise ValueError("attn_mask, is_causal: got one, expected none: a linear attention has no mask of tokens")
