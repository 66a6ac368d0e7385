"""The token mixers beside MetaLA against the formulas of their papers, with every gradient; and what they share."""

import pytest
import torch
from mixer_formulas import FORMULAS, turned
from timm.models._manipulate import named_apply
from tolerances import FLOAT32, HALF_MIXER, relative_rms
from torch import Tensor, nn

from metala_vision.layers.mixers import MIXERS, InLine, MetaLA
from metala_vision.layers.mixers.inline import injective_attention
from metala_vision.layers.mixers.registry import build_mixer
from metala_vision.layers.mixers.rotary import rotated
from metala_vision.layers.mixers.zeros import MOST
from metala_vision.models.init import init_module

EXACT = 1e-9  # a whole mixer in float64
DIM, HEADS = 24, 3
SCANNED = ("gla", "retnet", "ssd", "hgrn")
CAUSAL = sorted(set(FORMULAS) - {"inline"})
GRIDS = [(1, 1), (2, 3), (4, 3)]


def perturbed(name: str, dtype=torch.float64, dim: int = DIM, heads: int = HEADS, **settings) -> nn.Module:
    """Every weight of order one: nothing hides behind an initial value."""
    mixer = build_mixer(name, dim, heads, dtype=dtype, **settings)
    with torch.no_grad():
        for key, p in mixer.named_parameters():
            p.copy_(torch.randn_like(p) * (0.5 if p.dim() > 1 or key in ("log_rate", "norm_bias") else 1.0))
            if name == "zeros" and p.dim() > 1:
                p.mul_(0.5)  # logits are squares of tokens, and those beyond 40 do not count
    return mixer


def compare(mixer: nn.Module, x: Tensor, grid: tuple[int, int], name: str) -> None:
    """Output and every gradient."""
    x = x.requires_grad_()
    weights = [x, *mixer.parameters()]
    actual = mixer(x, grid)
    expected = torch.stack([FORMULAS[name](mixer, image, grid) for image in x])
    assert (actual - expected).norm() <= EXACT * max(expected.norm().item(), 1.0)
    direction = torch.randn_like(actual)
    found = torch.autograd.grad((actual * direction).sum(), weights, materialize_grads=True)
    wanted = torch.autograd.grad((expected * direction).sum(), weights, materialize_grads=True)
    names = ["x", *(key for key, _ in mixer.named_parameters())]
    scale = max(1.0, *(gradient.norm().item() for gradient in wanted))
    for key, one, other in zip(names, found, wanted):
        assert (one - other).norm() <= EXACT * max(other.norm().item(), 1e-3 * scale), key


def test_every_mixer_has_a_formula():
    """Catches a mixer that nothing here compares; MetaLA has a file of its own."""
    assert set(FORMULAS) | {"metala"} == set(MIXERS)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
@pytest.mark.parametrize("name", FORMULAS)
def test_mixer_equals_the_formula(name, grid):
    scans = [("row", "row_reverse"), ("column_reverse",)] if name in SCANNED else [None]
    for scan in scans:
        mixer = perturbed(name, local_conv=False, **({} if scan is None else {"scan": scan}))
        compare(mixer, torch.randn(2, grid[0] * grid[1], DIM, dtype=torch.float64), grid, name)


@pytest.mark.parametrize("tokens", [1, 3, 9])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_mixer_equals_the_formula(name, tokens):
    mixer = perturbed(name, local_conv=False, causal=True, scan=("row",))
    compare(mixer, torch.randn(2, tokens, DIM, dtype=torch.float64), (1, tokens), name)


@pytest.mark.parametrize("name", SCANNED)
def test_decay_follows_the_grid(name):
    """Catches a factor that is not on the log-decay, as it is on no other grid than that of the training."""
    mixer = perturbed(name, local_conv=False, scan=("row", "column"))
    mixer.nominal_grid = (2, 2)
    x = torch.randn(1, 12, DIM, dtype=torch.float64)
    compare(mixer, x, (3, 4), name)
    scaled = mixer(x, (3, 4))
    mixer.nominal_grid = (3, 4)
    assert relative_rms(mixer(x, (3, 4)), scaled) > 1e-3


@pytest.mark.parametrize("causal", [False, True], ids=["grid", "causal"])
@pytest.mark.parametrize("name", MIXERS)
def test_convolution_comes_first(name, causal):
    """Catches a mixer that projects the tokens as they came, where the others convolve them."""
    if causal and name == "inline":
        return
    settings = dict(scan=("row",), causal=causal)
    mixer, bare = perturbed(name, **settings), perturbed(name, local_conv=False, **settings)
    bare.load_state_dict({key: value for key, value in mixer.state_dict().items() if not key.startswith("conv.")})
    x = torch.randn(2, 12, DIM, dtype=torch.float64)
    grid = (1, 12) if causal else (3, 4)
    assert relative_rms(mixer(x, grid), bare(mixer.conv(x, grid), grid)) <= EXACT


@pytest.mark.parametrize("name", ["metala", *CAUSAL])
def test_causal_mixer_does_not_look_ahead(name):
    mixer = perturbed(name, causal=True, scan=("row",))
    x = torch.randn(1, 20, DIM, dtype=torch.float64)
    changed = x.clone()
    changed[:, 12:] = torch.randn(1, 8, DIM, dtype=torch.float64)
    before, after = mixer(x, (1, 20)), mixer(changed, (1, 20))
    assert relative_rms(after[:, :12], before[:, :12]) <= EXACT
    assert relative_rms(after[:, 12:], before[:, 12:].detach()) > 1e-2


def test_a_causal_zeros_mixer_bounds_its_logits():
    """Catches earlier outputs that vanish beside a later logit far above theirs, by which they are scaled."""
    mixer = build_mixer("zeros", 64, 2, causal=True, local_conv=False)
    named_apply(init_module, mixer)
    x = torch.randn(1, 6, 64)
    before = mixer(x[:, :5], (1, 5))
    for size in (1.0, 30.0, 1000.0):
        last = torch.cat([x[:, :5], size * x[:, 5:]], 1)
        assert relative_rms(mixer(last, (1, 6))[:, :5], before) <= 1e-4, size
    parts = mixer._logits(100 * torch.randn(1, 20, 2, 32), (1, 20))
    assert parts.abs().max() == MOST


def beside_float64(name: str, initial: bool, causal: bool, grid: tuple[int, int]):
    """A mixer in float64 and the same in float32, at initial weights or at larger ones, and tokens for both."""
    settings = dict(scan=("row",), causal=causal)
    exact = build_mixer(name, 64, 2, dtype=torch.float64, **settings)
    named_apply(init_module, exact)
    with torch.no_grad():
        for p in exact.parameters():
            if not initial:
                p.copy_(torch.randn_like(p) * (0.25 if p.dim() > 1 else 1.0))
    single = build_mixer(name, 64, 2, **settings)
    single.load_state_dict(exact.state_dict())
    return exact, single, torch.randn(2, grid[0] * grid[1], 64)


CASES = [(name, causal) for name in MIXERS for causal in (False, True) if (name, causal) != ("inline", True)]


@pytest.mark.parametrize("initial", [True, False], ids=["initial", "larger"])
@pytest.mark.parametrize(("name", "causal"), CASES)
def test_float32(name, causal, initial):
    """Float32 beside float64, with every gradient. Catches sums that cancel, as the weights of ZeroS do."""
    grid = (1, 196) if causal else (14, 14)
    exact, single, x = beside_float64(name, initial, causal, grid)
    expected, actual = exact(x.double(), grid), single(x, grid)
    assert relative_rms(actual, expected) <= FLOAT32
    direction = torch.randn_like(actual)
    wanted = torch.autograd.grad((expected * direction.double()).sum(), list(exact.parameters()))
    found = torch.autograd.grad((actual * direction).sum(), list(single.parameters()))
    scale = max(gradient.norm().item() for gradient in wanted)
    for (key, _), one, other in zip(exact.named_parameters(), found, wanted):
        # A number for each head, as SSD's decay, is a sum over all tokens and channels, in which nearly all cancels.
        floor = 0.1 if other.numel() == exact.num_heads else 1e-2
        assert (one - other).norm() <= FLOAT32 * max(other.norm().item(), floor * scale), key


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("name", "causal"), CASES)
def test_half_precision(name, causal, dtype):
    """Autocast on 64 x 64 tokens, or 256 of a sequence, at initial weights.

    Catches what vanishes or overflows in float16, and sums of half precision that cancel.
    """
    grid = (1, 256) if causal else (64, 64)
    exact, single, x = beside_float64(name, True, causal, grid)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert relative_rms(single(x, grid), exact(x.double(), grid)) <= HALF_MIXER


@pytest.mark.parametrize(("name", "causal"), CASES)
def test_strange_inputs(name, causal):
    """One token, equal tokens, zeros, small and very large ones: finite results and gradients."""
    mixer = build_mixer(name, 32, 2, scan=("row",), causal=causal)
    large = torch.cat([1e3 * torch.randn(1, 1, 32), torch.randn(1, 33, 32), 1e3 * torch.randn(1, 1, 32)], 1)
    inputs = torch.randn(1, 1, 32), torch.ones(2, 35, 32), torch.zeros(1, 35, 32), 1e-4 * torch.randn(1, 35, 32), large
    for x in inputs:
        grid = (1, 35) if causal else (5, 7)
        mixer.zero_grad()
        out = mixer(x.clone().requires_grad_(), (1, 1) if x.shape[1] == 1 else grid)
        out.square().sum().backward()
        assert out.isfinite().all()
        assert all(p.grad.isfinite().all() for p in mixer.parameters())
    with torch.no_grad():
        assert mixer.half()(torch.zeros(1, 35, 32).half(), (1, 35) if causal else (5, 7)).isfinite().all()


def test_injective_weights_sum_to_one_and_keep_the_length_of_a_query():
    """What the paper asks of the weights: equal values come out as they are; a longer query gives others."""
    q, k, v = torch.randn(3, 2, 30, 2, 8, dtype=torch.float64).unbind()
    assert torch.allclose(injective_attention(q, k, torch.ones_like(v), 30.0), torch.ones_like(v))
    assert relative_rms(injective_attention(2 * q, k, v, 30.0), injective_attention(q, k, v, 30.0)) > 0.1


@pytest.mark.parametrize("causal", [False, True], ids=["grid", "causal"])
def test_rotation_depends_on_distances_alone(causal):
    """Catches a rotation that changes lengths, and products that depend on places: the released ZeroS code has both."""
    grid = (1, 40) if causal else (6, 7)
    q, k = torch.randn(2, 1, 1, 1, 18, dtype=torch.float64).expand(-1, -1, grid[0] * grid[1], -1, -1)
    turned_q, turned_k = rotated(q, grid, 18, causal), rotated(k, grid, 18, causal)
    assert torch.allclose(turned_q.norm(dim=-1), q.norm(dim=-1))
    products = torch.einsum("bthk,bshk->ts", turned_q, turned_k)
    places = torch.arange(grid[0] * grid[1])
    rows, cols = places // grid[1], places % grid[1]
    apart = (rows[:, None] - rows) * 100 + cols[:, None] - cols
    for distance in apart.unique():
        of_distance = products[apart == distance]
        assert torch.allclose(of_distance, of_distance[:1].expand_as(of_distance))
    assert products.std() > 0.1
    assert torch.allclose(turned_q[0].transpose(0, 1), turned(q[0].transpose(0, 1), grid, causal))


def test_parameters_of_a_mixer():
    """At width C: 4 C^2 for MetaLA, GLA, RetNet, HGRN, softmax and normalized; SSD has fewer, ZeroS and InLine more."""
    dim, heads = 192, 3
    count = {name: sum(p.numel() for p in build_mixer(name, dim, heads).parameters()) for name in MIXERS}
    conv, square = 9 * dim, dim * dim
    assert count["metala"] == 4 * square + conv + dim + dim  # gate and self-augmentation, decay
    assert count["gla"] == 4 * square + conv + 16 * dim + 8 * dim + dim + dim // 2
    assert count["retnet"] == 4 * square + conv + dim
    assert count["hgrn"] == 4 * square + conv + 3 * dim
    assert count["softmax"] == 4 * square + conv
    assert count["normalized"] == 4 * square + conv + heads * (dim + 1)
    assert count["ssd"] == 3 * square + conv + dim * (2 * 32 + heads) + dim + 3 * heads
    assert count["zeros"] == 5 * square + conv + 2 * heads * dim + dim + heads
    assert count["inline"] == 4 * square + conv + 10 * square // heads + 10 * dim


def test_names_and_classes():
    assert MIXERS["metala"] is MetaLA
    assert MIXERS["inline"] is InLine
    for name, kind in MIXERS.items():
        assert kind.__doc__, name


@pytest.mark.parametrize("causal", [False, True], ids=["grid", "causal"])
@pytest.mark.parametrize("name", MIXERS)
def test_map_of_values(name, causal):
    """It is linear; it is what the mixer does: its own values through it, the norm and the gate are the output."""
    if causal and name == "inline":
        return
    mixer = perturbed(name, scan=("row",), causal=causal)
    x, grid = torch.randn(2, 12, DIM, dtype=torch.float64), (1, 12) if causal else (3, 4)
    v, mixed = mixer.map_of_values(x, grid)
    other = torch.randn_like(v)
    assert relative_rms(mixed(2 * v - other), 2 * mixed(v) - mixed(other)) <= EXACT
    o = mixed(v)
    if name == "metala":
        mixer.aug_weight.data.zero_()  # the self-augmentation is not linear in the values
    if name in ("metala", *SCANNED):
        y = mixer.gated(o, mixer.choose(x, grid)[-1])
    elif name == "zeros":
        y = mixer.merge(nn.functional.layer_norm(o, [mixer.value_dim], eps=1e-5).flatten(2))
    else:
        y = mixer.merge(o.flatten(2))
    assert relative_rms(y, mixer(x, grid)) <= EXACT
