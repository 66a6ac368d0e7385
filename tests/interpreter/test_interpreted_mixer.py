"""The fused mixer in Triton's interpreter against its formula, written out in float64."""

import pytest
import torch
from gla_inputs import ALL_ORDERS
from poison import arena, poisoned_memory
from tolerances import for_dtype, relative_rms
from torch.nn import functional as F

from metala_vision.kernels import gpu, gpu_plan
from metala_vision.kernels.reference import clamp_log_decay, recurrence

NAMES = ("projected", "gate_bias", "aug_weight")


def unfused(projected, gate_bias, aug_weight, heads, grid, scan, decay_scale=1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """y and o of the mixer, step by step."""
    batch, tokens, channels = projected.shape[0], projected.shape[1], gate_bias.shape[0]
    half = channels // 2
    q, logits, v, z = projected.split([half, half, channels, channels], dim=-1)
    q, logits, v = (x.unflatten(-1, (heads, -1)) for x in (q, logits, v))
    g = clamp_log_decay(decay_scale * F.logsigmoid(logits) / 16)
    k = -torch.expm1(g)
    o = recurrence(q, g, v, k, grid, scan, q.shape[-1] ** -0.5)
    own = (q * aug_weight.unflatten(-1, (heads, -1)) * k).sum(-1, keepdim=True) * v
    o = o + 0.5 * torch.tanh(0.5 * own)
    norm = (o - o.mean(-1, keepdim=True)) / (o.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return F.silu(z + gate_bias) * norm.reshape(batch, tokens, channels), o.reshape(batch, tokens, channels)


def make_mixer(tokens: int, heads: int, key: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> dict:
    channels = 2 * key * heads
    return {
        "projected": torch.randn(batch, tokens, 3 * channels).to(dtype),
        "gate_bias": 0.3 * torch.randn(channels),
        "aug_weight": torch.randn(channels // 2),
    }


def reference(inputs: dict, grad_y: torch.Tensor, *arguments, decay_scale: float = 1.0) -> dict:
    leaves = [inputs[name].detach().double().requires_grad_() for name in NAMES]
    y, o = unfused(*leaves, *arguments, decay_scale)
    return {"y": y.detach(), "o": o.detach()} | dict(zip(NAMES, torch.autograd.grad(y, leaves, grad_y.double())))


@pytest.fixture
def triton_run(monkeypatch):
    """All results of kernels/gpu.py's mixer, with NaN in and around all memory, cut into `segments`."""

    def run(inputs: dict, grad_y: torch.Tensor, *arguments, segments: int = 1, decay_scale: float = 1.0) -> dict:
        monkeypatch.setattr(gpu_plan, "choose_segments", lambda *sizes: segments)
        monkeypatch.setitem(gpu.COMBINE, "BE", 512)  # the interpreter takes its time for each program
        parameters = [arena(inputs[name]) for name in NAMES]
        with poisoned_memory(monkeypatch):
            y, o = gpu.mixer_forward(*parameters, *arguments, decay_scale=decay_scale)
            gradients = gpu.mixer_backward(arena(grad_y), *parameters, o, *arguments, decay_scale=decay_scale)
            alone, nothing = gpu.mixer_forward(*parameters, *arguments, keep=False, decay_scale=decay_scale)
        assert torch.equal(alone, y)
        assert nothing.numel() == 0
        assert y.dtype == gradients[0].dtype == inputs["projected"].dtype
        assert {o.dtype, gradients[1].dtype, gradients[2].dtype} == {torch.float32}
        return {"y": y, "o": o} | dict(zip(NAMES, gradients))

    return run


def assert_close(actual: dict, expected: dict, heads: int, dtype: torch.dtype) -> None:
    """Each of q, logits, v and z has its own scale, so that each is compared by itself."""
    for results in (actual, expected := dict(expected)):
        channels = results["gate_bias"].shape[0]
        sizes = [channels // 2, channels // 2, channels, channels]
        parts = results["projected"].split(sizes, dim=-1)
        results |= dict(zip(("q", "log_decay", "v", "z"), parts))
    errors = {name: relative_rms(actual[name], expected[name]) for name in expected}
    too_large = {name: error for name, error in errors.items() if not error <= for_dtype(dtype, name)}
    assert not too_large, f"beyond the tolerances: {too_large}"


@pytest.mark.parametrize("segments", [1, 100])
@pytest.mark.parametrize(
    ("grid", "scan", "heads", "key"),
    [
        ((1, 1), ("row",), 2, 8),
        ((5, 7), ("row", "row_reverse"), 2, 16),
        ((5, 7), ("column", "column_reverse"), 3, 8),
        ((3, 17), ALL_ORDERS, 1, 32),
        ((6, 6), ("column_reverse", "row"), 1, 24),
        ((5, 7), ("row_reverse",), 1, 12),
    ],
    ids=lambda x: "x".join(map(str, x)) if isinstance(x, tuple) else str(x),
)
def test_equals_the_formula(grid, scan, heads, key, segments, triton_run):
    """Catches any slip in the norm, the gate, the self-augmentation or their gradients, fused with the scan."""
    inputs = make_mixer(grid[0] * grid[1], heads, key, batch=1 + (key == 12))
    grad_y = torch.randn_like(inputs["projected"][..., : 2 * key * heads])
    expected = reference(inputs, grad_y, heads, grid, scan)
    actual = triton_run(inputs, grad_y, heads, grid, scan, segments=segments)
    assert_close(actual, expected, heads, torch.float32)


@pytest.mark.parametrize("logit", [-300.0, -81.5, -20.0, 20.0, 90.0])
def test_extreme_gates(logit, triton_run):
    """Catches overflow in the log-sigmoid and its gradient, and the clamp at the floor (a logit of -80)."""
    inputs = make_mixer(33, 1, 16)
    inputs["projected"][..., 16:32] = logit + torch.rand(33, 16)
    grad_y = torch.randn(1, 33, 32)
    arguments = (1, (3, 11), ("row", "row_reverse"))
    actual, expected = triton_run(inputs, grad_y, *arguments), reference(inputs, grad_y, *arguments)
    if logit == 90.0:  # k is 1e-40: o is zero, and what the norm makes of it is rounding
        assert all(x.isfinite().all() for x in actual.values())
        return
    assert_close(actual, expected, 1, torch.float32)
    if logit < -80:
        assert torch.count_nonzero(actual["projected"][..., 16:32]) == 0


@pytest.mark.parametrize("segments", [1, 100])
@pytest.mark.parametrize("decay_scale", [0.25, 4.0])
def test_decay_scale(decay_scale, segments, triton_run):
    """Catches a scale that a kernel, a gradient or the clamp has not heard of: at 4 a logit of -20 is at the floor."""
    inputs = make_mixer(35, 2, 16)
    inputs["projected"][..., 32:48] = torch.tensor([-21.0, -19.0, 3.0, 0.0]).repeat(4)
    grad_y = torch.randn(1, 35, 64)
    arguments = (2, (5, 7), ("row", "column_reverse"))
    actual = triton_run(inputs, grad_y, *arguments, segments=segments, decay_scale=decay_scale)
    assert_close(actual, reference(inputs, grad_y, *arguments, decay_scale=decay_scale), 2, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision(dtype, triton_run):
    """Catches sums in half precision, and o or its gradient rounded on the way."""
    inputs = make_mixer(35, 2, 16, dtype=dtype)
    grad_y = torch.randn(1, 35, 64).to(dtype)
    arguments = (2, (5, 7), ALL_ORDERS)
    assert_close(triton_run(inputs, grad_y, *arguments), reference(inputs, grad_y, *arguments), 2, dtype)


def test_strided_projection_and_expanded_gradient(triton_run):
    """Catches a projection taken for contiguous, and the gradient of `.sum()` for a full tensor."""
    inputs = make_mixer(35, 2, 8, batch=2)
    inputs["projected"] = torch.randn(35, 2, 128)[:, :, :96].transpose(0, 1)
    grad_y = torch.ones(1).expand(2, 35, 32)
    arguments = (2, (5, 7), ("row", "column"))
    actual = triton_run(inputs, grad_y, *arguments, segments=2)
    assert_close(actual, reference(inputs, grad_y, *arguments), 2, torch.float32)
    assert actual["projected"].is_contiguous()
