"""The matrix products of a model, and a run of nothing but them: the floor that no implementation of the rest can beat.

Products are those of linear layers and of convolutions without groups; those inside attention operators do not count.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metala_vision.kernels.cpu import mlp_tile


class Operand(NamedTuple):
    """Shape and memory layout of a matrix."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Product(NamedTuple):
    """left [M, K] times right [K, N]."""

    left: Operand
    right: Operand

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return prod(self.left.shape) * self.right.shape[1]


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if name == "aten.mm.default":
            self.products.append(Product(_operand(args[0]), _operand(args[1])))
        elif name == "aten.addmm.default":
            self.products.append(Product(_operand(args[1]), _operand(args[2])))
        elif name == "metala.swiglu_mlp_forward.default":
            tokens = prod(args[0].shape[:-1])
            size = mlp_tile(tokens)
            for begin in range(0, tokens, size):
                self.products += [_linear(min(size, tokens - begin), weight) for weight in args[1:3]]
        result = func(*args, **(kwargs or {}))
        if name == "aten.convolution.default" and args[8] == 1:
            self.products.append(_linear(result.numel() // result.shape[1], args[1].flatten(1)))
        return result


def _operand(x: Tensor) -> Operand:
    return Operand(tuple(x.shape), tuple(x.stride()), x.dtype)


def _linear(tokens: int, weight: Tensor) -> Product:
    """tokens x weight^T, for a weight [N, K]."""
    (n, k), dtype = weight.shape, weight.dtype
    return Product(Operand((tokens, k), (k, 1), dtype), Operand((k, n), (1, k), dtype))


def matrix_products(step: Callable[[], object]) -> list[Product]:
    """The matrix products of one call of `step`, in their order, backward pass included.

    `step` must not enter inference mode, where operators reach the recorder whole; no_grad is the same to them.
    """
    with _Recorder() as recorder:
        step()
    return recorder.products


def replay(products: list[Product]) -> Callable[[], None]:
    """A function that computes these products and nothing else, on random matrices of the same memory layout.

    Results are allocated anew, as a model does; of the operands, equal ones share their memory.
    """
    operands: dict[Operand, Tensor] = {}
    for operand in {operand for product in products for operand in product}:
        x = torch.empty_strided(operand.shape, operand.stride, dtype=operand.dtype)
        operands[operand] = x.copy_(torch.randn(operand.shape))

    def run() -> None:
        for left, right in products:
            torch.mm(operands[left], operands[right])

    return run
