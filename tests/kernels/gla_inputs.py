"""Inputs for the tests of the operator, and one way to run it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from metala_vision.kernels import gated_linear_attention

ALL_ORDERS = ("row", "row_reverse", "column", "column_reverse")


def _beyond(shape: tuple[int, ...]) -> Tensor:
    """Below the floor, within, and above zero: the operator clamps both ends."""
    return torch.rand(shape) * 14 - 10


# The gates of the design's table; tau is the root of the decay.
GATES = {
    "tau1": lambda shape: F.logsigmoid(torch.randn(shape)),
    "tau16": lambda shape: F.logsigmoid(torch.randn(shape)) / 16,
    "floor": lambda shape: torch.full(shape, -5.0),
    "below": lambda shape: -5.5 - torch.rand(shape) * 20,
    "beyond": _beyond,
    "mixed": lambda shape: torch.where(torch.rand(shape) < 0.5, 0.0, -5.0),
    "near_zero": lambda shape: -1e-4 * torch.rand(shape),
}


def make(
    tokens: int, key: int = 8, value: int = 16, gate: str = "tau1", with_k: bool = False, batch: int = 2, heads: int = 2
) -> dict[str, Tensor]:
    """Signed random float32 inputs by name; without "k" it is derived from log_decay."""
    shape = (batch, tokens, heads, key)
    inputs = {
        "q": torch.randn(shape),
        "log_decay": GATES[gate](shape),
        "v": torch.randn(batch, tokens, heads, value),
    }
    return inputs | ({"k": torch.randn(shape)} if with_k else {})


def cast(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: x.to(dtype) for name, x in inputs.items()}


def run(
    inputs: dict[str, Tensor], grad_out: Tensor, dtype: torch.dtype | None = None, **kwargs
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output of the operator on `inputs` as leaves of `dtype`, and the gradient of each."""
    leaves = {name: x.detach().to(dtype or x.dtype).requires_grad_() for name, x in inputs.items()}
    out = gated_linear_attention(**leaves, **kwargs)
    gradients = torch.autograd.grad(out, list(leaves.values()), grad_out.to(out.dtype), allow_unused=True)
    missing = [name for name, gradient in zip(leaves, gradients) if gradient is None]
    assert not missing, f"no gradient reached {missing}"
    return out.detach(), dict(zip(leaves, gradients))
