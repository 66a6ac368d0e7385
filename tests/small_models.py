"""Small models that several files of tests share."""

import torch
from torch import nn

# Decoders of `metala_vision.dense.segmenter`, each as narrow as it goes.
DECODERS = dict(
    unet=dict(decoder_channels=(32, 16, 16, 8, 8)),
    fpn=dict(pyramid_channels=32, segmentation_channels=32),
    upernet=dict(decoder_channels=16),
    segformer=dict(segmentation_channels=16),
    dpt=dict(intermediate_channels=(16, 16, 16, 16)),
)


def strong(model: nn.Module, size: float = 0.2) -> nn.Module:
    """In evaluation mode, with weights far from their first values, so that decays and scores of every kind occur."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator))
    return model.eval()
