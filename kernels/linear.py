"""The matrix products of inference on a CPU, by the faster of the libraries that torch brings."""

import platform

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, residual: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """x weight^T, plus `residual` and `bias`: [..., C] -> [..., C'], all of one dtype. No gradients.

    In float32 torch itself calls MKL, and adds the residual in a pass of its own. On an AMD EPYC, MKL takes 5 to 20
    percent longer than the oneDNN that comes with torch (tools/bench_model.py shows both floors). This function calls
    what torch.compile makes of a linear layer, but without packed weights.
    """
    if takes_onednn(x.dtype):
        if residual is None:
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
    if residual is None:
        return F.linear(x, weight, bias)
    if bias is not None:
        residual = residual + bias
    width = residual.shape[-1]
    return torch.addmm(residual.reshape(-1, width), x.reshape(-1, x.shape[-1]), weight.t()).view(residual.shape)


def takes_onednn(dtype: torch.dtype) -> bool:
    """Whether `linear` calls oneDNN: it does where oneDNN was measured to be faster, unless it is switched off."""
    return dtype == torch.float32 and _HAS_ONEDNN and bool(torch.backends.mkldnn.enabled)


_HAS_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
