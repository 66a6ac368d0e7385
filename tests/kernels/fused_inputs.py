"""Formulas of the fused operators, written out in float64, and inputs and comparisons for their tests."""

import torch
from gla_inputs import ALL_ORDERS
from tolerances import relative_rms
from torch import Tensor, nn

from metala_vision.kernels import mixer

GRIDS = [(1, 1), (1, 7), (7, 9), (14, 14), (15, 17), (40, 40)]
WIDTHS = [(48, 3), (20, 2), (192, 3), (64, 1)]  # channels and heads: K, V of 8, 16; 5, 10; 32, 64; 32, 64
SCANS = [
    *ALL_ORDERS,
    "row,row_reverse",
    "column,column_reverse",
    "column_reverse,column",
    "row_reverse,column",
    "column,row,row_reverse",
    ",".join(ALL_ORDERS),
    ",".join(ALL_ORDERS[::-1]),
]
ALL = ",".join(ALL_ORDERS)
LAYOUTS = ["contiguous", "permuted"]


def name_of(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"


def permuted(x: Tensor) -> Tensor:
    """The same values, dense, with the second axis side by side in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


# --- the formulas


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def visits(order: str, rows: int, cols: int) -> Tensor:
    """Tokens in the sequence of a scan order."""
    index = torch.tensor([r * cols + c for r in range(rows) for c in range(cols)])
    if order.startswith("column"):
        index = torch.tensor([r * cols + c for c in range(cols) for r in range(rows)])
    return index.flip(0) if order.endswith("_reverse") else index


def mixer_formula(
    inputs: dict[str, Tensor], heads: int, grid: tuple[int, int], scan: str, decay_scale: float = 1.0
) -> Tensor:
    """A32 to A37 of arXiv 2411.10741 in float64, token by token; inputs as leaves of float64."""
    projected = torch.cat([inputs[name] for name in ("q", "logits", "v", "z")], -1)
    dim = projected.shape[2] // 3
    q, logits, v, z = (x.unflatten(-1, (heads, -1)) for x in projected.split([dim // 2, dim // 2, dim, dim], -1))
    alpha = (sigmoid(logits) ** (decay_scale / 16)).clamp(min=torch.tensor(-5.0, dtype=torch.float64).exp())
    k = 1 - alpha
    own = (q * k).sum(-1, keepdim=True) * v
    total = own
    for order in scan.split(","):
        index = visits(order, *grid)
        state, steps = 0.0, []
        for q_t, alpha_t, k_t, v_t in zip(*(x[:, index].unbind(1) for x in (q, alpha, k, v))):
            state = alpha_t.unsqueeze(-1) * state + k_t.unsqueeze(-1) * v_t.unsqueeze(-2)  # [B, H, K, V]
            steps.append((q_t.unsqueeze(-2) @ state).squeeze(-2))
        back = torch.empty_like(index)
        back[index] = torch.arange(len(index))
        total = total + torch.stack(steps, 1)[:, back] - own
    augmentation = sigmoid((q * inputs["aug_weight"].view(heads, -1) * k).sum(-1, keepdim=True) * v)
    o = total * (dim // 2 // heads) ** -0.5 + augmentation
    o = o - o.mean(-1, keepdim=True)
    normed = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    z = z + inputs["gate_bias"].view(heads, -1)
    return (z * sigmoid(z) * normed).flatten(2)


def conv_formula(x: Tensor, weight: Tensor, rows: int, cols: int) -> Tensor:
    """Nine shifted images, each times its tap: zeros beyond the edge."""
    image = x.unflatten(1, (rows, cols))
    padded = nn.functional.pad(image, (0, 0, 1, 1, 1, 1))
    y = sum(padded[:, i : i + rows, j : j + cols] * weight[:, 0, i, j] for i in range(3) for j in range(3))
    return (y * sigmoid(y)).flatten(1, 2)


def conv_swiglu_formula(x: Tensor, weight: Tensor, rows: int, cols: int) -> Tensor:
    gate, value = x.chunk(2, -1)
    return conv_formula(gate, weight, rows, cols) * value


def swiglu_formula(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x[..., :half] * sigmoid(x[..., :half]) * x[..., half:]


# --- inputs and comparison


GATES = {
    "scale1": lambda shape: torch.randn(shape),
    # Beyond the floor, wide open, and all between.
    "saturated": lambda shape: torch.tensor([-100.0, 100.0, 1.0, -1.0])[torch.randint(4, shape)] * torch.rand(shape),
    "spread": lambda shape: 20 * torch.randn(shape),
}


def make(tokens: int, dim: int, gate: str = "scale1", batch: int = 2) -> dict[str, Tensor]:
    """Signed random inputs of the mixer, the projection in its four parts."""
    shape = (batch, tokens)
    return {
        "q": torch.randn(*shape, dim // 2),
        "logits": GATES[gate]((*shape, dim // 2)),
        "v": torch.randn(*shape, dim),
        "z": torch.randn(*shape, dim),
        "gate_bias": torch.randn(dim),
        "aug_weight": torch.randn(dim // 2),
    }


def run(function, inputs: dict[str, Tensor], grad_out: Tensor | None = None) -> dict[str, Tensor]:
    """Output of function(leaves), as "out", and the gradient of each input."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    out = function(leaves)
    grad_out = torch.ones_like(out) if grad_out is None else grad_out
    gradients = torch.autograd.grad(out, list(leaves.values()), grad_out.to(out.dtype))
    return {"out": out.detach(), **dict(zip(leaves, gradients))}


def run_mixer(
    inputs: dict[str, Tensor],
    grad_out: Tensor,
    heads: int,
    grid: tuple[int, int],
    scan: str,
    backend: str,
    decay_scale: float = 1.0,
) -> dict[str, Tensor]:
    def fused(leaves):
        projected = torch.cat([leaves[name] for name in ("q", "logits", "v", "z")], -1)
        return mixer(projected, leaves["gate_bias"], leaves["aug_weight"], heads, *grid, scan, backend, decay_scale)

    return run(fused, inputs, grad_out)


def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() for name, x in inputs.items()}


def errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative_rms(actual[name], x) for name, x in expected.items()}


def conv_inputs(grid: tuple[int, int], channels: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    inputs = {"x": 2 * torch.randn(2, grid[0] * grid[1], channels), "weight": torch.randn(channels, 1, 3, 3)}
    return {name: x.to(dtype) for name, x in inputs.items()}
