"""The depthwise convolutions and their SiLU against loops over pixels and taps."""

import pytest
import torch
from tolerances import FLOAT64, relative_rms

from metala_vision.layers import CausalConv, GridConv


def perturbed_tokens(conv, x, grid, token):
    """Tokens of the output that change with one token of the input."""
    changed = x.clone()
    changed[:, token] += 1.0
    return (conv(changed, grid) != conv(x, grid)).any(-1).any(0).nonzero().flatten().tolist()


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (6, 1), (2, 5), (5, 2), (4, 4)], ids=lambda g: f"{g[0]}x{g[1]}")
def test_grid_conv_equals_a_loop(grid):
    """Catches rows and columns taken for one another, a flipped kernel, and padding other than zeros."""
    rows, cols = grid
    conv = GridConv(3, dtype=torch.float64)
    x = torch.randn(2, rows * cols, 3, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for r in range(rows):
        for c in range(cols):
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    if 0 <= r + i < rows and 0 <= c + j < cols:
                        weight = conv.weight[:, 0, 1 + i, 1 + j].detach()
                        expected[:, r * cols + c] += weight * x[:, (r + i) * cols + c + j]
    assert relative_rms(conv(x, grid), expected * expected.sigmoid()) <= FLOAT64


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 9])
def test_causal_conv_equals_a_loop(tokens):
    """Catches a convolution that is shifted, flipped, or reads the next token."""
    conv = CausalConv(3, dtype=torch.float64)
    x = torch.randn(2, tokens, 3, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for t in range(tokens):
        for lag in range(min(t, 3) + 1):
            expected[:, t] += conv.weight[:, 0, 3 - lag].detach() * x[:, t - lag]
    assert relative_rms(conv(x, (1, tokens)), expected * expected.sigmoid()) <= FLOAT64


def test_reach():
    """Catches a neighbourhood that wraps around the edge of the image, and a causal one that looks ahead."""
    x = torch.randn(2, 20, 3)
    assert perturbed_tokens(GridConv(3), x, (4, 5), 9) == [3, 4, 8, 9, 13, 14]  # the end of the second row
    assert perturbed_tokens(CausalConv(3), x, (4, 5), 9) == [9, 10, 11, 12]


@pytest.mark.parametrize(("conv", "taps"), [(GridConv, 9), (CausalConv, 4)])
def test_parameters_are_depthwise_without_bias(conv, taps):
    """Catches a full convolution, or a bias, that the parameter table does not have."""
    layer = conv(8, device="meta", dtype=torch.bfloat16)
    assert [(name, p.numel()) for name, p in layer.named_parameters()] == [("weight", 8 * taps)]
    assert (layer.weight.device.type, layer.weight.dtype) == ("meta", torch.bfloat16)


@pytest.mark.parametrize("conv", [GridConv, CausalConv])
def test_strided_tokens_and_gradients(conv):
    """Catches a view that only contiguous tokens allow, forwards or backwards."""
    layer = conv(3, dtype=torch.float64)
    x = torch.randn(3, 12, 2, dtype=torch.float64).permute(2, 1, 0).requires_grad_()
    assert relative_rms(layer(x, (3, 4)), layer(x.detach().contiguous(), (3, 4))) <= FLOAT64
    assert torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(layer, {"weight": weight}, (x, (3, 4))),
        (x.detach().requires_grad_(), layer.weight),
    )
