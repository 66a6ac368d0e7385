"""Whether a module does nothing but what its class and parameters say, so that a fused operator may stand in for it."""

from typing import TypeGuard, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

Kind = TypeVar("Kind", bound=nn.Module)


def is_watched(module: nn.Module) -> bool:
    """Whether a module has a hook or a forward of its own, which expect to be called, or all modules have a hook."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    of_all = (
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
        torch_module._global_backward_hooks,
        torch_module._global_backward_pre_hooks,
    )
    return any(hooks) or any(of_all) or "forward" in module.__dict__


def is_plain(module: nn.Module, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether a module is of exactly this class, and no adapter or quantised one, and nobody watches it."""
    return type(module) is kind and not is_watched(module)


def is_plain_product(linear: nn.Module) -> bool:
    """Whether a linear layer is the product with its weight and nothing else."""
    return is_plain(linear, nn.Linear) and linear.bias is None and _is_what_it_seems(linear.weight)


def _is_what_it_seems(weight: torch.Tensor) -> bool:
    """Whether a weight is an ordinary tensor and not, say, a quantised one; a compiler's stand-in for it counts."""
    if torch.compiler.is_compiling():
        return not is_traceable_wrapper_subclass(weight)
    return type(weight) in (nn.Parameter, torch.Tensor)
