"""How the parameters of a new model are initialised."""

from torch import nn

from metala_vision.layers import MetaLA


def init_module(module: nn.Module, name: str = "") -> None:
    """Truncated normal of 0.02 for the projections, zeros for biases, gate and self-augmentation; the rest as torch."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, MetaLA):
        nn.init.zeros_(module.gate_bias)
        nn.init.zeros_(module.aug_weight)
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()
