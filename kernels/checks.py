"""What the operators expect of their arguments: each function raises a ValueError that names what does not fit."""

import math

import torch
from torch import Tensor

from .reference import SCAN_ORDERS

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_attention(
    q: Tensor, log_decay: Tensor, v: Tensor, k: Tensor | None, rows: int, cols: int, scan: tuple[str, ...]
) -> None:
    """Raises ValueError for what does not fit."""
    tensors = {"q": q, "log_decay": log_decay, "v": v} | ({} if k is None else {"k": k})
    for name, x in tensors.items():
        if x.dim() != 4:
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected 4 dimensions [B, N, H, channels]")
        if x.dtype not in DTYPES:
            raise ValueError(f"{name}: got {x.dtype}, expected one of {', '.join(map(str, DTYPES))}")
        check_device(name, x, v)
        if name in ("log_decay", "k") and x.shape != q.shape:
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected {tuple(q.shape)}, the shape of q")
    if v.shape[:3] != q.shape[:3]:
        raise ValueError(f"v: got shape {tuple(v.shape)}, expected [B, N, H, V] with {tuple(q.shape[:3])} from q")
    tokens = q.shape[1]
    if tokens < 1:
        raise ValueError("q: got 0 tokens, expected at least 1")
    if q.shape[3] < 1:
        raise ValueError(f"q: got shape {tuple(q.shape)}, expected at least 1 channel")
    check_grid(tokens, rows, cols, scan)


def check_mixer(
    x: Tensor,
    dim: int,
    gate_bias: Tensor,
    aug_weight: Tensor,
    num_heads: int,
    rows: int,
    cols: int,
    scan: str,
    decay_scale: float,
) -> tuple[str, ...]:
    """The scan orders of a mixer of `dim` channels on the tokens of x [B, N, _]; ValueError for what does not fit."""
    orders = tuple(scan.split(",")) if scan else ()
    if num_heads < 1 or dim < 1 or dim % (2 * num_heads):
        raise ValueError(f"num_heads: got {num_heads} for {dim} channels, expected 2 * num_heads to divide them")
    if gate_bias.shape != (dim,) or aug_weight.shape != (dim // 2,):
        raise ValueError(
            f"gate_bias, aug_weight: got shapes {tuple(gate_bias.shape)}, {tuple(aug_weight.shape)},"
            f" expected ({dim},), ({dim // 2},)"
        )
    check_device("gate_bias", gate_bias, x)
    check_device("aug_weight", aug_weight, x)
    check_grid(x.shape[1], rows, cols, orders)
    # torch.export and torch.compile hand in symbols, which have no value yet: a comparison would fix it
    if isinstance(decay_scale, int | float) and not 0 < decay_scale < math.inf:
        raise ValueError(f"decay_scale: got {decay_scale}, expected a positive number")
    return orders


def check_conv(
    x: Tensor, weight: Tensor, rows: int, cols: int, name: str = "weight", channels: int | None = None
) -> None:
    """Checks the weight of a convolution on the tokens of x [B, N, C]; `channels`: it has others than C."""
    if x.dim() != 3:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected [B, N, C]")
    expected = (x.shape[2] if channels is None else channels, 1, 3, 3)
    if weight.shape != expected:
        raise ValueError(f"{name}: got shape {tuple(weight.shape)}, expected {expected}")
    check_device(name, weight, x)
    check_grid(x.shape[1], rows, cols, SCAN_ORDERS)


def check_pairs(x: Tensor) -> None:
    """Checks x [..., 2 D]: gate and value."""
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected an even number of channels, gate and value")


def check_norm(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Checks the parameters of a LayerNorm of x [..., C]."""
    expected = (x.shape[-1],)
    if weight.shape != expected or bias.shape != expected:
        raise ValueError(
            f"norm_weight, norm_bias: got shapes {tuple(weight.shape)}, {tuple(bias.shape)}, expected {expected} twice"
        )
    check_device("norm_weight", weight, x)
    check_device("norm_bias", bias, x)


def check_mlp(x: Tensor, weight_in: Tensor, weight_out: Tensor) -> None:
    """Checks the weights of a SwiGLU MLP of x [..., C]: weight_in [2 D, C] and weight_out [_, D]."""
    shapes = tuple(weight_in.shape), tuple(weight_out.shape)
    if x.dim() < 1 or list(map(len, shapes)) != [2, 2] or shapes[0] != (2 * shapes[1][1], x.shape[-1]):
        raise ValueError(
            f"weight_in, weight_out: got shapes {shapes[0]}, {shapes[1]} for x {tuple(x.shape)},"
            f" expected (2 D, C), (C', D) for (..., C)"
        )
    check_device("weight_in", weight_in, x)
    check_device("weight_out", weight_out, x)


def check_device(name: str, x: Tensor, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(f"{name}: got device {x.device}, expected {other.device}, the device of the other input")


def check_grid(tokens: int, rows: int, cols: int, scan: tuple[str, ...]) -> None:
    if rows < 1 or cols < 1 or rows * cols != tokens:
        raise ValueError(f"grid: got ({rows}, {cols}), expected (rows, cols) with rows * cols == {tokens} tokens")
    if not scan or len(set(scan)) != len(scan) or not set(scan) <= set(SCAN_ORDERS):
        raise ValueError(f"scan: got {tuple(scan)}, expected a non-empty tuple out of {SCAN_ORDERS}, none twice")
