"""TorchScript, which torch is giving up: calls that expect its deprecation, and that skip where torch has ended it."""

import io
import sys
import warnings
from collections.abc import Callable

import pytest
import torch

_DEPRECATED = ".torch.jit.* is deprecated"  # a DeprecationWarning in torch 2.11, a FutureWarning in 2.14


def script(module: torch.nn.Module) -> torch.jit.ScriptModule:
    """torch.jit.script."""
    return _called(torch.jit.script, module)


def trace(module: torch.nn.Module, x: torch.Tensor) -> torch.jit.ScriptModule:
    """torch.jit.trace."""
    return _called(torch.jit.trace, module, x)


def save_and_load(scripted: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Through a file and back."""
    file = io.BytesIO()
    _called(torch.jit.save, scripted, file)
    file.seek(0)
    return _called(torch.jit.load, file)


def _called(function: Callable, *arguments):
    if sys.version_info >= (3, 14):
        pytest.skip("torch supports TorchScript up to Python 3.13")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _DEPRECATED)
        return function(*arguments)
