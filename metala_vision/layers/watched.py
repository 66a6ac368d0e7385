"""Whether a module does nothing but what its class and parameters say, so that a fused operator may stand in for it."""

from torch import nn


def is_watched(module: nn.Module) -> bool:
    """Whether it has a hook or a forward of its own, which expect to be called."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it is of just this class, no adapter or quantised one, and nobody watches it."""
    return type(module) is kind and not is_watched(module)


def is_plain_product(linear: nn.Module) -> bool:
    """Whether it is the product with its weight and nothing else."""
    return is_plain(linear, nn.Linear) and linear.bias is None
