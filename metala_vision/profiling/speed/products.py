"""The matrix products of a model, and a run of nothing but them: the floor that no implementation of the rest can beat.

Products are those of linear layers and of convolutions without groups; those inside attention operators do not count.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from metala_vision.kernels import library
from metala_vision.kernels.linear import linear


class Operand(NamedTuple):
    """Shape and memory layout of a matrix."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Product(NamedTuple):
    """left [M, K] times right [K, N]."""

    left: Operand
    right: Operand
    onednn: bool = False  # computed by oneDNN, as `kernels.linear` may do, and not by torch.mm
    kept: bool = False  # its result goes into memory that is kept between calls

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return prod(self.left.shape) * self.right.shape[1]


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = str(func), kwargs or {}
        if name in _IN_THE_OPEN:
            with self:
                return _IN_THE_OPEN[name](*args, **kwargs)
        if name in ("aten.mm.default", "aten.mm.out"):
            self.products.append(Product(_operand(args[0]), _operand(args[1]), kept=name.endswith("out")))
        elif name in ("aten.addmm.default", "aten.addmm.out"):
            self.products.append(Product(_operand(args[1]), _operand(args[2]), kept=name.endswith("out")))
        elif name == "aten.linear.default":  # undivided, below autograd: in an operator of ours
            self.products.append(_linear(args[0], args[1]))
        elif name == "mkldnn._linear_pointwise.default":
            self.products.append(_linear(args[0], args[1], onednn=True))
        elif name == "mkldnn._linear_pointwise.binary":
            self.products.append(_linear(args[0], args[2], onednn=True))
        result = func(*args, **kwargs)
        if name == "aten.convolution.default" and args[8] == 1:
            self.products.append(_linear(result.movedim(1, -1), args[1].flatten(1)))
        return result


# Operators that the dispatcher sees as one call, and the functions behind them, whose calls it sees one by one.
_IN_THE_OPEN = {
    "metala.swiglu_mlp_forward.default": library.swiglu_mlp_forward,
    "metala.add_mixer_forward.default": library.add_mixer_forward,
}


def _operand(x: Tensor) -> Operand:
    return Operand(tuple(x.shape), tuple(x.stride()), x.dtype)


def _linear(x: Tensor, weight: Tensor, onednn: bool = False) -> Product:
    """The product of as many tokens as x [..., _] has with weight^T, for a weight [N, K]."""
    (n, k), dtype, tokens = weight.shape, weight.dtype, prod(x.shape[:-1])
    return Product(Operand((tokens, k), (k, 1), dtype), Operand((k, n), (1, k), dtype), onednn)


def matrix_products(step: Callable[[], object]) -> list[Product]:
    """The matrix products of one call of `step`, in their order, backward pass included.

    `step` must not enter inference mode, where composite operators reach the recorder undivided; no_grad will do.
    """
    with _Recorder() as recorder:
        step()
    return recorder.products


def floors(step: Callable[[], object]) -> dict[str, Callable[[], object]]:
    """The matrix products of `step` alone: "floor" by its own library, and "torch floor" by torch.mm if that differs.

    `step` is as for `matrix_products`.
    """
    products = matrix_products(step)
    found: dict[str, Callable[[], object]] = {"floor": replay(products)}
    if any(product.onednn for product in products):
        found["torch floor"] = replay([product._replace(onednn=False) for product in products])
    return found


def replay(products: list[Product]) -> Callable[[], None]:
    """A function that computes these products and nothing else, on random matrices of the same memory layout.

    Each runs by the same library as in the model, and its result is kept in memory where the model keeps it. Operands
    of the same shape and layout share their memory.
    """
    operands: dict[Operand, Tensor] = {}
    for operand in {operand for product in products for operand in (product.left, product.right)}:
        x = torch.empty_strided(operand.shape, operand.stride, dtype=operand.dtype)
        operands[operand] = x.copy_(torch.randn(operand.shape))
    results = {p: torch.empty(p.left.shape[0], p.right.shape[1], dtype=p.left.dtype) for p in products if p.kept}

    def run() -> None:
        for product in products:
            left, right = operands[product.left], operands[product.right]
            if product.onednn:
                linear(left, right.t())
            else:
                torch.mm(left, right, out=results.get(product))

    return run
