"""The fused operators in plain PyTorch: what they compute, and what runs where a device or dtype has no kernel.

Differentiable any number of times. B batch, N tokens of a grid, C channels, H heads, K and V channels of a head.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .reference import GATE_TEMPERATURE, NORM_EPS, clamp_log_decay


def gate_log_decay(logits: Tensor, decay_scale: float = 1.0, temperature: float = GATE_TEMPERATURE) -> Tensor:
    """decay_scale * logsigmoid(logits) / temperature.

    Never in half precision: bfloat16 keeps too few digits of a decay near one.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.logsigmoid(logits) * (decay_scale / temperature)


def key_of(log_decay: Tensor) -> Tensor:
    """1 - exp(log_decay); computed as a difference, it would keep no digits near zero."""
    if torch.onnx.is_in_onnx_export():  # ONNX has no expm1, and torch puts the difference in its place
        return -torch.tanh(0.5 * log_decay) * (log_decay.exp() + 1)
    return -torch.expm1(log_decay)


def attention(
    run: Callable[..., Tensor],
    q: Tensor,
    log_decay: Tensor,
    v: Tensor,
    k: Tensor | None,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    scale: float,
) -> Tensor:
    """`ops.gated_linear_attention` by `run`, a composed form: it takes (q, log_decay, v, k, grid, scan, scale)."""
    compute = torch.float32
    for x in (q, log_decay, v, v if k is None else k):
        compute = torch.promote_types(compute, x.dtype)
    gate = clamp_log_decay(log_decay.to(compute))
    key = key_of(gate) if k is None else k.to(compute)
    return run(q.to(compute), gate, v.to(compute), key, grid, scan, scale).to(v.dtype)


def mixer(
    run: Callable[..., Tensor],
    projected: Tensor,
    gate_bias: Tensor,
    aug_weight: Tensor,
    num_heads: int,
    grid: tuple[int, int],
    scan: tuple[str, ...],
    decay_scale: float = 1.0,
) -> Tensor:
    """SiLU(z + bias) * LayerNorm_per_head(o), o = attention(q, g, v) + self-augmentation; see `ops.mixer`.

    `run` is a composed form of the operator: (q, log_decay, v, k, grid, scan, scale) -> [B, N, H, V].
    """
    dim = gate_bias.shape[0]
    compute = torch.promote_types(projected.dtype, torch.float32)
    q, logits, v, z = (
        x.to(compute).unflatten(-1, (num_heads, -1)) for x in projected.split([dim // 2, dim // 2, dim, dim], dim=-1)
    )
    log_decay = clamp_log_decay(gate_log_decay(logits, decay_scale))
    k = key_of(log_decay)
    o = run(q, log_decay, v, k, grid, scan, q.shape[-1] ** -0.5)
    # The self-augmentation sigmoid(y) without its constant 1/2, which the LayerNorm removes anyway. At initial weights
    # the scan's output is small, and adding 1/2 would round its digits away.
    y = (q * (aug_weight.to(compute).view(num_heads, -1) * k)).sum(-1, keepdim=True) * v
    o = o + 0.5 * torch.tanh(0.5 * y)
    gate_bias = gate_bias.to(compute).view(num_heads, -1)
    o = F.layer_norm(o, [gate_bias.shape[-1]], eps=NORM_EPS)
    return (F.silu(z + gate_bias) * o).flatten(-2).to(projected.dtype)


def conv_silu(x: Tensor, weight: Tensor, rows: int, cols: int) -> Tensor:
    """SiLU of a depthwise 3x3 convolution on row-major tokens [B, N, C], which are an NHWC image already."""
    batch, tokens, dim = x.shape
    x = x.reshape(batch, rows, cols, dim).permute(0, 3, 1, 2)
    x = F.conv2d(x, weight, padding=1, groups=dim)
    return F.silu(x.permute(0, 2, 3, 1).reshape(batch, tokens, dim))


def conv_swiglu(x: Tensor, weight: Tensor, rows: int, cols: int) -> Tensor:
    """`conv_silu` of the gate, times the value, x = (gate, value): [B, N, 2 D] -> [B, N, D]."""
    gate, value = x.chunk(2, dim=-1)
    return (conv_silu(gate, weight, rows, cols) * value).to(x.dtype)


def swiglu(x: Tensor) -> Tensor:
    """SiLU(gate) * value of x = (gate, value): [..., 2 D] -> [..., D]."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def patches(x: Tensor, height: int, width: int) -> Tensor:
    """[B, chans, H, W] -> [B, rows, cols, chans * height * width], with zeros beyond the image."""
    x = F.pad(x, (0, -x.shape[3] % width, 0, -x.shape[2] % height))
    x = x.unflatten(3, (x.shape[3] // width, width)).unflatten(2, (x.shape[2] // height, height))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).contiguous()
