"""How the parameters of a new model are initialised."""

import torch
from torch import nn

from metala_vision.layers import MetaLA
from metala_vision.layers.decay import spread_logits


def init_module(module: nn.Module, name: str = "") -> None:
    """Truncated normal of 0.02 for projections, zeros for biases and self-augmentation; the rest as its layer says."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, MetaLA):
        nn.init.zeros_(module.gate_bias)
        nn.init.zeros_(module.aug_weight)
        if module.decay_bias is not None:
            with torch.no_grad():
                module.decay_bias.copy_(spread_logits(module.key_dim, module.num_heads))
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()
