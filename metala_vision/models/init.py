"""How the parameters of a new model are initialised."""

from torch import nn


def init_module(module: nn.Module, name: str = "") -> None:
    """Truncated normal of 0.02 for projections, zeros for biases and self-augmentation; the rest as its layer says."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()
