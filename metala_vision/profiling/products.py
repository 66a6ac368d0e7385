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
from metala_vision.kernels.linear import linear, takes_onednn


class Operand(NamedTuple):
    """Shape and memory layout of a matrix."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Product(NamedTuple):
    """left [M, K] times right [K, N]."""

    left: Operand
    right: Operand
    onednn: bool = False  # by `kernels.linear`, as the fused operators compute theirs, and not by torch.mm

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
        elif name.startswith("mkldnn._linear_pointwise."):
            self.products.append(_linear(args[0].shape[0], args[1 + name.endswith("binary")], True))
        elif name == "metala.swiglu_mlp_forward.default":
            tokens = prod(args[0].shape[:-1])
            size = mlp_tile(tokens)
            for begin in range(0, tokens, size):
                self.products += _fused(min(size, tokens - begin), args[1], args[2])
        elif name == "metala.add_mixer_forward.default":
            self.products += _fused(prod(args[0].shape[:-1]), args[5], args[8])  # weight_in, weight_out
        result = func(*args, **(kwargs or {}))
        if name == "aten.convolution.default" and args[8] == 1:
            self.products.append(_linear(result.numel() // result.shape[1], args[1].flatten(1)))
        return result


def _operand(x: Tensor) -> Operand:
    return Operand(tuple(x.shape), tuple(x.stride()), x.dtype)


def _linear(tokens: int, weight: Tensor, onednn: bool = False) -> Product:
    """tokens x weight^T, for a weight [N, K]."""
    (n, k), dtype = weight.shape, weight.dtype
    return Product(Operand((tokens, k), (k, 1), dtype), Operand((k, n), (1, k), dtype), onednn)


def _fused(tokens: int, *weights: Tensor) -> list[Product]:
    return [_linear(tokens, weight, takes_onednn(weight.dtype)) for weight in weights]


def matrix_products(step: Callable[[], object]) -> list[Product]:
    """The matrix products of one call of `step`, in their order, backward pass included.

    `step` must not enter inference mode, where operators reach the recorder whole; no_grad is the same to them.
    """
    with _Recorder() as recorder:
        step()
    return recorder.products


def replay(products: list[Product]) -> Callable[[], None]:
    """A function that computes these products and nothing else, on random matrices of the same memory layout.

    By the same library; results are allocated anew, as a model does; of the operands, equal ones share their memory.
    """
    operands: dict[Operand, Tensor] = {}
    for operand in {operand for product in products for operand in product[:2]}:
        x = torch.empty_strided(operand.shape, operand.stride, dtype=operand.dtype)
        operands[operand] = x.copy_(torch.randn(operand.shape))

    def run() -> None:
        for left, right, onednn in products:
            if onednn:
                linear(operands[left], operands[right].t())
            else:
                torch.mm(operands[left], operands[right])

    return run
