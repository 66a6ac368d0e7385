"""A small model for the tests of MetaLA-ViT."""

import timm
import torch
from torch import Tensor

from metala_vision import MetaLAViT

CLOSE = 1e-5  # float32, one computation ordered in two ways
ROWS, COLUMNS = ["row", "row_reverse"], ["column", "column_reverse"]


def nano(depth: int = 2, **kwargs) -> MetaLAViT:
    """Two blocks, by rows and by columns, with every weight away from its initial zero."""
    model = timm.create_model("metala_vit_nano", depth=depth, **dict(num_classes=5) | kwargs)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model.eval()


def tokens_of(feature_map: Tensor) -> Tensor:
    return feature_map.flatten(2).transpose(1, 2)
