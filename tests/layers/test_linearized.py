"""Linearized attention against its formulas with every map explicit, with every gradient; and what stays exact."""

import math

import pytest
import torch
from mixer_formulas import visits
from timm.layers import Attention
from timm.models.vision_transformer import Block, ResPostBlock
from tolerances import FLOAT32, HALF_MIXER, relative_rms
from torch import Tensor

from metala_vision.layers.linearized import FORMS, LinearizedAttention, LinearizedBlock
from metala_vision.layers.linearized.forms import EPS, LARGEST_FADE, Form

EXACT = 1e-9  # a whole attention in float64
DIM, HEADS, STATES = 24, 3, 5
SCAN = ("row", "column_reverse")


def perturbed(form: str, prefix: int = 2, dtype=torch.float64, **settings) -> LinearizedAttention:
    """Every weight of order one: nothing hides behind an initial value."""
    attn = Attention(DIM, HEADS, qkv_bias=True, dtype=dtype)
    linear = LinearizedAttention(attn, prefix, form, STATES, SCAN, **settings)
    with torch.no_grad():
        for p in linear.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
    return linear.eval()


def shares(form: Form, k: Tensor, h: int) -> Tensor:
    return torch.stack([(key @ form.key_weight[h] + form.key_bias[h]).softmax(0) for key in k])


def classes_by_hand(form, h, q, k, v, prefix_k, prefix_v, grid) -> Tensor:
    a = shares(form, k, h)
    size = a.sum(0) + EPS
    keys = torch.cat([prefix_k, torch.stack([(a[:, m, None] * k).sum(0) / size[m] for m in range(STATES)])])
    values = torch.cat([prefix_v, torch.stack([(a[:, m, None] * v).sum(0) / size[m] for m in range(STATES)])])
    count = torch.cat([torch.ones(len(prefix_k), dtype=q.dtype), size])
    weights = count * (q @ keys.T / math.sqrt(q.shape[1])).exp()
    return weights @ values / weights.sum(1, keepdim=True)


def kernel_by_hand(form, h, q, k, v, prefix_k, prefix_v, grid) -> Tensor:
    a = shares(form, k, h)
    f = (q @ form.query_weight[h] + form.query_bias[h]).exp()
    exact = (q @ prefix_k.T / math.sqrt(q.shape[1])).exp()
    own = f @ a.T  # the map [N, N]
    spare = EPS * f.sum(1, keepdim=True)
    return (exact @ prefix_v + own @ v) / (exact.sum(1, keepdim=True) + own.sum(1, keepdim=True) + spare)


def metala_by_hand(form, h, q, k, v, prefix_k, prefix_v, grid) -> Tensor:
    rows, cols = grid
    scale = 1.0 if form.nominal_grid[0] == 0 else math.prod(form.nominal_grid) / (rows * cols)
    alpha = (1 - LARGEST_FADE * form.rate[h].sigmoid() * shares(form, k, h)) ** scale
    written = 1 - alpha
    choice = (q @ form.query_weight[h] + form.query_bias[h]).softmax(1)
    total, weight = torch.zeros_like(v), torch.zeros(len(v), dtype=v.dtype)
    for order in form.scan:
        state, mass = torch.zeros(STATES, v.shape[1], dtype=v.dtype), torch.zeros(STATES, dtype=v.dtype)
        for t in visits(order, rows, cols):
            state = alpha[t, :, None] * state + written[t, :, None] * v[t]
            mass = alpha[t] * mass + written[t]
            total, weight = total.clone(), weight.clone()
            total[t] += choice[t] @ state
            weight[t] += choice[t] @ mass
    own = (choice * written).sum(1) * (len(form.scan) - 1)  # a token's own term counts once
    total, weight = total - own[:, None] * v, weight - own
    root = math.sqrt(q.shape[1])  # the operator multiplies by STATES^-1/2, which EPS is beside
    o = total / (weight + EPS * math.sqrt(STATES))[:, None]
    logits = q @ k.mean(0) / root + 0.5 * (q.square() @ k.var(0, unbiased=False)) / root**2
    own_mass, exact = logits.exp() * len(v), (q @ prefix_k.T / root).exp()
    return (exact @ prefix_v + own_mass[:, None] * o) / (exact.sum(1) + own_mass)[:, None]


BY_HAND = {"classes": classes_by_hand, "kernel": kernel_by_hand, "metala": metala_by_hand}


def by_hand(attention: LinearizedAttention, x: Tensor, grid: tuple[int, int], form: str) -> Tensor:
    """One image [P + N, C]."""
    p, width = attention.num_prefix_tokens, DIM // HEADS
    q, k, v = (x @ attention.qkv.weight.T + attention.qkv.bias).split(DIM, 1)
    heads = []
    for h in range(HEADS):
        own = slice(h * width, (h + 1) * width)
        qh, kh, vh = q[:, own], k[:, own], v[:, own]
        before = (qh[:p] @ kh.T / math.sqrt(width)).softmax(1) @ vh
        patches = BY_HAND[form](attention.form, h, qh[p:], kh[p:], vh[p:], kh[:p], vh[:p], grid)
        image = vh[p:].reshape(*grid, width)
        local = torch.zeros_like(patches).reshape(*grid, width)
        kernel = attention.local.weight[own, 0]
        for r in range(grid[0]):
            for c in range(grid[1]):
                for i in range(3):
                    for j in range(3):
                        if 0 <= r + i - 1 < grid[0] and 0 <= c + j - 1 < grid[1]:
                            local[r, c] = local[r, c] + kernel[:, i, j] * image[r + i - 1, c + j - 1]
        heads.append(torch.cat([before, patches + local.reshape(-1, width)]))
    return torch.cat(heads, 1) @ attention.proj.weight.T + attention.proj.bias


def test_every_form_has_a_formula():
    assert set(BY_HAND) == set(FORMS)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 3)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_formula(form, grid, prefix):
    """Catches a slip in any form, in what joins it to class token and registers, and in any gradient."""
    attention = perturbed(form, prefix)
    if form == "metala":
        attention.form.nominal_grid = (2, 2)
    x = torch.randn(2, prefix + grid[0] * grid[1], DIM, dtype=torch.float64, requires_grad=True)
    actual, expected = attention(x, grid), torch.stack([by_hand(attention, image, grid, form) for image in x])
    assert relative_rms(actual, expected) <= EXACT
    direction = torch.randn_like(actual)
    leaves = [x, *attention.parameters()]
    found = torch.autograd.grad((actual * direction).sum(), leaves, materialize_grads=True)
    wanted = torch.autograd.grad((expected * direction).sum(), leaves, materialize_grads=True)
    scale = max(gradient.norm().item() for gradient in wanted)
    names = ["x", *(name for name, _ in attention.named_parameters())]
    for name, one, other in zip(names, found, wanted):
        assert (one - other).norm() <= EXACT * max(other.norm().item(), 1e-3 * scale), name


@pytest.mark.parametrize("form", FORMS)
def test_class_token_and_registers_stay_exact(form):
    attn = Attention(DIM, HEADS, qkv_bias=True, qk_norm=True, scale_norm=False, norm_layer=torch.nn.LayerNorm).eval()
    x = torch.randn(2, 3 + 12, DIM)
    expected = attn(x)[:, :3]
    assert relative_rms(LinearizedAttention(attn, 3, form, STATES)(x, (3, 4))[:, :3], expected) <= FLOAT32


def test_a_class_for_every_key_is_softmax_attention():
    """Catches sizes, means or weights of classes that are off: with one key in each there is nothing left to lose."""
    attn = Attention(DIM, HEADS, qkv_bias=True, dtype=torch.float64).eval()
    x = 3 * torch.randn(1, 2 + 6, DIM, dtype=torch.float64)
    linear = LinearizedAttention(attn, 2, "classes", 6)
    keys = linear.project(x)[1][0, :, 2:]
    linear.form.start(keys.detach(), torch.full((HEADS,), 1e-3, dtype=torch.float64))
    assert relative_rms(linear(x, (2, 3)), attn(x)) <= 1e-5  # EPS is beside the size of a class


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options", [dict(gated=True), dict(qk_norm=True), dict(scale_norm=True), dict(proj_bias=False)]
)
def test_options_of_the_teacher(form, options):
    """Their weights are taken over and used: a change of each changes the patches."""
    attn = Attention(DIM, HEADS, qkv_bias=True, norm_layer=torch.nn.LayerNorm, **options).eval()
    names = {name for name, _ in attn.named_parameters()}
    linear = LinearizedAttention(attn, 1, form, STATES)
    assert names <= {name for name, _ in linear.named_parameters()}
    x = torch.randn(1, 1 + 12, DIM)
    before = linear(x, (3, 4))
    for name in names:
        p = linear.get_parameter(name)
        saved = p.detach().clone()
        with torch.no_grad():
            p.add_(torch.randn_like(p))
        assert relative_rms(linear(x, (3, 4))[:, 1:], before[:, 1:]) > 1e-6, name
        with torch.no_grad():
            p.copy_(saved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_half_precision(form, dtype):
    attention = perturbed(form, dtype=torch.float32)
    x = torch.randn(2, 2 + 12, DIM)
    expected = attention.double()(x.double(), (3, 4))
    with torch.autocast("cpu", dtype):
        actual = attention.float()(x, (3, 4))
    assert relative_rms(actual, expected) <= HALF_MIXER


@pytest.mark.parametrize("form", FORMS)
def test_large_keys_stay_finite(form):
    """Catches a class of no key divided by its size, and a fade of one, whose logarithm is minus infinity."""
    attention = perturbed(form, dtype=torch.float32)
    x = (100 * torch.randn(1, 2 + 12, DIM)).requires_grad_()
    out = attention(x, (3, 4))
    out.square().mean().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


def test_what_cannot_be_linearized():
    attn = Attention(DIM, HEADS)
    with pytest.raises(ValueError, match="mixer: got 'softmax', expected one of"):
        LinearizedAttention(attn, 1, "softmax")
    with pytest.raises(ValueError, match="attn: got a Identity, expected timm's Attention"):
        LinearizedAttention(torch.nn.Identity(), 1)
    with pytest.raises(ValueError, match="attn_drop_rate: got 0.5, expected 0"):
        LinearizedAttention(Attention(DIM, HEADS, attn_drop=0.5), 1)
    with pytest.raises(ValueError, match="states: got 0, expected 1 or more"):
        LinearizedAttention(attn, 1, states=0)
    with pytest.raises(ValueError, match="block: got a ResPostBlock, expected timm's Block"):
        LinearizedBlock(ResPostBlock(DIM, HEADS))


def test_a_kept_block_is_the_teachers():
    block = Block(DIM, HEADS, qkv_bias=True, init_values=0.1).eval()
    x = torch.randn(2, 13, DIM)
    expected = block(x)
    assert torch.equal(LinearizedBlock(block)(x, (3, 4)), expected)
