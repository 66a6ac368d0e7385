"""The MetaLA layer against the paper's formulas (arXiv 2411.10741, A31 to A37), token by token in plain Python.

Nothing below comes from the package but the layer and its weights: lists of floats, and loops.
"""

import math

import pytest
import torch
from tolerances import FLOAT32, relative_rms
from torch import Tensor

from metala_vision.kernels.unfused import gate_log_decay
from metala_vision.layers import MetaLA

EXACT = 1e-10  # a whole layer in float64
ROWS = ("row", "row_reverse")
COLUMNS = ("column", "column_reverse")
DIM, HEADS = 16, 2


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def silu(x: float) -> float:
    return x * sigmoid(x)


def project(x: list[float], weight: list[list[float]]) -> list[float]:
    return [sum(w * a for w, a in zip(row, x)) for row in weight]


def visits(order: str, rows: int, cols: int) -> list[int]:
    if order.startswith("row"):
        sequence = [r * cols + c for r in range(rows) for c in range(cols)]
    else:
        sequence = [r * cols + c for c in range(cols) for r in range(rows)]
    return sequence[::-1] if order.endswith("_reverse") else sequence


def conv_2d(x, weight, rows, cols):
    """A31 in two dimensions: depthwise 3x3, zeros beyond the edge; weight is [C][1][3][3]."""
    out = [[0.0] * len(weight) for _ in x]
    for r in range(rows):
        for c in range(cols):
            for i in range(3):
                for j in range(3):
                    y, z = r + i - 1, c + j - 1
                    if 0 <= y < rows and 0 <= z < cols:
                        for channel, kernel in enumerate(weight):
                            out[r * cols + c][channel] += kernel[0][i][j] * x[y * cols + z][channel]
    return out


def conv_1d(x, weight):
    """A31 as printed: depthwise and causal, four taps, the last one on the token itself; weight is [C][1][4]."""
    return [
        [
            sum(kernel[0][tap] * x[t - 3 + tap][channel] for tap in range(4) if t - 3 + tap >= 0)
            for channel, kernel in enumerate(weight)
        ]
        for t in range(len(x))
    ]


def scan_head(q, alpha, v, orders, rows, cols):
    """A32 to A34 for one head: sum over the orders of scale * q_t S_t, a token's own term once; k = 1 - alpha."""
    keys, values = len(q[0]), len(v[0])
    scale = 1 / math.sqrt(keys)
    out = [[0.0] * values for _ in q]
    for number, order in enumerate(orders):
        state = [[0.0] * values for _ in range(keys)]
        for t in visits(order, rows, cols):
            for a in range(keys):
                for b in range(values):
                    state[a][b] = alpha[t][a] * state[a][b] + (1 - alpha[t][a]) * v[t][b]
            own = sum(q[t][a] * (1 - alpha[t][a]) for a in range(keys))
            for b in range(values):
                out[t][b] += scale * sum(q[t][a] * state[a][b] for a in range(keys))
                if number > 0:
                    out[t][b] -= scale * own * v[t][b]
    return out


def layer_by_the_paper(layer: MetaLA, x: Tensor, grid: tuple[int, int], orders: tuple[str, ...]) -> Tensor:
    """One image [N, C] through the layer; q, decay, v and gate stand in this sequence in the fused projection."""
    rows, cols = grid
    weights = {name: p.detach().tolist() for name, p in layer.named_parameters()}
    half = DIM // 2
    w_q, w_a, w_v, w_g = (
        weights["in_proj.weight"][start:stop]
        for start, stop in [(0, half), (half, DIM), (DIM, 2 * DIM), (2 * DIM, 3 * DIM)]
    )
    tokens = x.tolist()
    convolved = (
        conv_1d(tokens, weights["conv.weight"])
        if len(orders) == 1
        else conv_2d(tokens, weights["conv.weight"], rows, cols)
    )
    x = [[silu(a) for a in token] for token in convolved]
    q = [project(token, w_q) for token in x]
    bias = weights.get("decay_bias", [0.0] * half)  # ours: the paper has none
    logits = [[a + b for a, b in zip(project(token, w_a), bias)] for token in x]
    alpha = [[max(sigmoid(a) ** (1 / 16), math.exp(-5)) for a in token] for token in logits]
    v = [project(token, w_v) for token in x]
    z = [[a + b for a, b in zip(project(token, w_g), weights["gate_bias"])] for token in x]
    gated = [[] for _ in x]
    k_width, v_width = half // HEADS, DIM // HEADS
    for h in range(HEADS):
        keys, values = slice(h * k_width, (h + 1) * k_width), slice(h * v_width, (h + 1) * v_width)
        q_h, alpha_h, v_h = [t[keys] for t in q], [t[keys] for t in alpha], [t[values] for t in v]
        scanned = scan_head(q_h, alpha_h, v_h, orders, rows, cols)
        for t in range(len(x)):
            w_aug = weights["aug_weight"][keys]
            dot = sum(a * w * (1 - d) for a, w, d in zip(q_h[t], w_aug, alpha_h[t]))
            o = [s + sigmoid(dot * u) for s, u in zip(scanned[t], v_h[t])]  # A35
            mean = sum(o) / v_width
            variance = sum((a - mean) ** 2 for a in o) / v_width
            normed = [(a - mean) / math.sqrt(variance + 1e-5) for a in o]  # A36
            gated[t] += [silu(g) * a for g, a in zip(z[t][values], normed)]
    return torch.tensor([project(token, weights["out_proj.weight"]) for token in gated], dtype=torch.float64)  # A37


def perturbed(layer: MetaLA) -> MetaLA:
    """Every weight of order one, those that start at zero included: nothing hides behind an initial value."""
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p) * (0.6 if p.dim() > 1 else 2.0))
    return layer


@pytest.mark.parametrize("decay_bias", [False, True], ids=["paper", "bias"])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 4)], ids=lambda g: f"{g[0]}x{g[1]}")
@pytest.mark.parametrize("scan", [ROWS, COLUMNS, ROWS + COLUMNS], ids=["rows", "columns", "all"])
def test_two_dimensional_layer_equals_the_formulas(scan, grid, decay_bias):
    """Catches a deviation from A31 to A37: order of the projections, key, scale, augmentation, norm, gate."""
    layer = perturbed(MetaLA(DIM, HEADS, scan=scan, decay_bias=decay_bias, dtype=torch.float64))
    x = torch.randn(2, grid[0] * grid[1], DIM, dtype=torch.float64)
    expected = torch.stack([layer_by_the_paper(layer, image, grid, scan) for image in x])
    assert relative_rms(layer(x, grid), expected) <= EXACT


def test_saturated_gates_equal_the_formulas():
    """Catches a self-augmentation whose key goes beyond the operator's gate floor."""
    layer = perturbed(MetaLA(DIM, HEADS, scan=ROWS, dtype=torch.float64))
    with torch.no_grad():
        layer.in_proj.weight[DIM // 2 : DIM] *= 60  # logits of hundreds: log-decays from 0 to far below -5
    x = torch.randn(1, 12, DIM, dtype=torch.float64)
    expected = layer_by_the_paper(layer, x[0], (3, 4), ROWS)[None]
    assert relative_rms(layer(x, (3, 4)), expected) <= EXACT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_log_decay_is_never_in_half_precision(dtype):
    """Catches a gate rounded to bfloat16, where a decay near one keeps no digit of its distance from one."""
    logits = torch.tensor([-90.0, -3.0, 0.0, 0.7, 5.0, 20.0], dtype=dtype)
    log_decay = gate_log_decay(logits)
    assert log_decay.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = [-math.log1p(math.exp(-x)) / 16 for x in logits.tolist()]
    for actual, value in zip(log_decay.tolist(), expected):
        assert actual == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("tokens", [1, 3, 4, 21])
def test_causal_layer_equals_the_formulas(tokens):
    """Catches a deviation of the paper's own one-dimensional layer."""
    layer = perturbed(MetaLA(DIM, HEADS, scan=("row",), causal=True, dtype=torch.float64))
    x = torch.randn(2, tokens, DIM, dtype=torch.float64)
    expected = torch.stack([layer_by_the_paper(layer, image, (1, tokens), ("row",)) for image in x])
    assert relative_rms(layer(x, (1, tokens)), expected) <= EXACT


@pytest.mark.parametrize("causal", [False, True], ids=["grid", "causal"])
def test_gradient_of_every_parameter(causal):
    """Catches a parameter that takes no part: a gradient of None, zero or NaN."""
    layer = perturbed(MetaLA(64, 2, scan=("row",) if causal else ROWS + COLUMNS, causal=causal))
    layer(torch.randn(2, 35, 64), (5, 7)).square().mean().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert (p.grad != 0).float().mean() > 0.99, name


@pytest.mark.parametrize("causal", [False, True], ids=["grid", "causal"])
def test_gradcheck(causal):
    """Catches a derivative cut inside the layer, of its input and of every parameter."""
    layer = perturbed(MetaLA(4, 1, scan=("row",) if causal else ROWS, causal=causal, dtype=torch.float64))
    parameters = dict(layer.named_parameters())

    def apply(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values)), (x, (2, 3)))

    x = torch.randn(1, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(apply, (x, *parameters.values()))


@pytest.mark.parametrize(("dim", "heads"), [(128, 2), (192, 3), (768, 12)])
def test_parameter_count(dim, heads):
    """Catches a bias or a projection too many: 4 * dim ** 2, as softmax attention has, plus the small change."""
    layer = MetaLA(dim, heads, device="meta")
    assert sum(p.numel() for p in layer.parameters()) == 4 * dim**2 + 9 * dim + dim + 2 * (dim // 2)
    causal = MetaLA(dim, heads, scan=("row",), causal=True, decay_bias=False, device="meta")
    assert sum(p.numel() for p in causal.parameters()) == 4 * dim**2 + 4 * dim + dim + dim // 2


def test_causal_layer_hears_no_later_token():
    """Catches a leak through the convolution or the scan, chunk boundaries included; float64 leaves rounding alone."""
    layer = perturbed(MetaLA(DIM, HEADS, scan=("row",), causal=True, dtype=torch.float64))
    x = torch.randn(2, 49, DIM, dtype=torch.float64)
    before = layer(x, (7, 7))
    for token in (1, 15, 16, 24, 48):
        changed = torch.cat([x[:, :token], torch.randn_like(x[:, token:])], 1)
        after = layer(changed, (7, 7))
        assert relative_rms(after[:, :token], before[:, :token]) <= EXACT
        assert relative_rms(after[:, token:], before[:, token:]) > 0.1


@pytest.mark.parametrize("scan", [ROWS, COLUMNS], ids=["rows", "columns"])
def test_two_ways_reach_the_whole_image(scan):
    """Catches an order that is dropped: with both ways each token hears every other."""
    layer = perturbed(MetaLA(DIM, HEADS, scan=scan, dtype=torch.float64))
    x = torch.randn(1, 20, DIM, dtype=torch.float64, requires_grad=True)
    for token in (0, 9, 19):
        (gradient,) = torch.autograd.grad(layer(x, (4, 5))[:, token].square().sum(), x)
        assert (gradient.abs().sum(-1) > 0).all()


def test_transposed_image_through_the_other_axis():
    """Catches a mixer whose parameters know a direction: columns are rows of the transposed image."""
    rows = perturbed(MetaLA(DIM, HEADS, scan=ROWS, dtype=torch.float64))
    columns = MetaLA(DIM, HEADS, scan=COLUMNS, dtype=torch.float64)
    columns.load_state_dict(rows.state_dict())
    with torch.no_grad():
        columns.conv.weight.copy_(rows.conv.weight.transpose(-1, -2))
    x = torch.randn(2, 4, 6, DIM, dtype=torch.float64)
    expected = rows(x.flatten(1, 2), (4, 6)).unflatten(1, (4, 6)).transpose(1, 2).flatten(1, 2)
    assert relative_rms(columns(x.transpose(1, 2).flatten(1, 2), (6, 4)), expected) <= EXACT


@pytest.mark.parametrize("weights", ["initial", "trained"])
@pytest.mark.parametrize("way", ["autocast", "half_weights"])
def test_bfloat16_stays_close(way, weights):
    """Catches a gate, a sum or a norm that loses its digits in half precision: bfloat16 itself costs one percent.

    The initial weights are the hard case: the scan's output is small beside the self-augmentation's constant 0.5, which
    the norm takes away again.
    """
    layer = MetaLA(64, 2, scan=ROWS + COLUMNS)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if weights == "trained":
                p.copy_(torch.randn_like(p) / (p[0].numel() ** 0.5 if p.dim() > 1 else 1))
            elif "proj" in name:
                p.normal_(std=0.02)
    x = torch.randn(2, 196, 64)
    expected = layer(x, (14, 14))
    if way == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x, (14, 14))
    else:
        layer, x = layer.to(torch.bfloat16), x.bfloat16()
        out = layer(x, (14, 14))
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert relative_rms(out, expected) <= 0.03


def test_dropout_is_on_in_training_alone():
    """Catches a rate that never arrives, or dropout at inference."""
    layer, x = MetaLA(DIM, HEADS, proj_drop=0.5), torch.randn(1, 6, DIM)
    assert (layer(x, (2, 3)) == 0).any()
    assert torch.equal(layer.eval()(x, (2, 3)), layer(x, (2, 3)))
    assert (layer(x, (2, 3)) != 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_heads=3), "num_heads: got 3 with dim 16, expected"),
        (dict(num_heads=16), "num_heads: got 16 with dim 16, expected"),
        (dict(num_heads=0), "num_heads: got 0 with dim 16, expected"),
        (dict(scan=()), r"scan: got \(\), expected a non-empty tuple"),
        (dict(scan=("diagonal",)), r"scan: got \('diagonal',\), expected a non-empty tuple out of \('row', "),
        (dict(scan=("row", "row")), r"scan: got \('row', 'row'\), expected a non-empty tuple .* none twice"),
        (dict(scan="row"), "scan: got 'row', expected a non-empty tuple"),
        (dict(scan=(["row"], ["column"])), r"scan: got \(\['row'\], \['column'\]\), expected a non-empty tuple"),
        (dict(scan=3), "scan: got 3, expected a non-empty tuple"),
        (dict(causal=True), r"scan: got \('row', 'row_reverse'\) with causal=True, expected \('row',\)"),
        (dict(causal=True, scan=("column",)), r"scan: got \('column',\) with causal=True, expected \('row',\)"),
    ],
)
def test_bad_arguments(arguments, message):
    """Catches a layer that is built and fails, or mixes wrongly, at its first image."""
    with pytest.raises(ValueError, match=f"^{message}"):
        MetaLA(**dict(dim=DIM, num_heads=HEADS) | arguments)


def memory(layer: MetaLA) -> list[float]:
    """Tokens after which a channel of the first head keeps 1/e of its state, where its projection is zero."""
    return [16 / math.log1p(math.exp(-b)) for b in layer.decay_bias[: layer.key_dim].tolist()]


def test_first_memories_are_spread():
    """Catches channels of one length, heads that differ, and lengths that do not span a picture."""
    layer = MetaLA(64, 2)
    assert layer.decay_bias.unflatten(0, (2, -1)).std(0).max() == 0
    lengths = memory(layer)
    assert lengths[0] == pytest.approx(7.5, abs=0.1)
    assert lengths[-1] == pytest.approx(881, abs=1)
    ratios = [b / a for a, b in zip(lengths, lengths[1:])]
    assert 1 < min(ratios) < max(ratios) < 1.6


class Adapted(torch.nn.Module):
    """A product as an adapter wraps it."""

    def __init__(self, base: torch.nn.Module):
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x)


@pytest.mark.parametrize("watched", ["hook", "adapter"])
def test_decay_bias_beside_other_projections(watched):
    """Catches a bias that is lost, and a projection that is not called, where it is no plain product."""
    layer = perturbed(MetaLA(DIM, HEADS))
    x = torch.randn(2, 6, DIM)
    expected = layer(x, (2, 3))
    calls = []
    if watched == "adapter":
        layer.in_proj = Adapted(layer.in_proj)
    layer.in_proj.register_forward_hook(lambda *_: calls.append(1))
    assert relative_rms(layer(x, (2, 3)), expected) <= FLOAT32
    assert calls == [1]
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x, (2, 3)).dtype == torch.bfloat16


def test_older_weights_have_no_decay_bias():
    """Catches weights from before the bias that do not load, or do not give what they gave."""
    former, layer = perturbed(MetaLA(DIM, HEADS, decay_bias=False)), MetaLA(DIM, HEADS)
    layer.load_state_dict(former.state_dict())
    x = torch.randn(2, 6, DIM)
    assert torch.equal(layer(x, (2, 3)), former(x, (2, 3)))
    with torch.device("meta"):
        assigned = MetaLA(DIM, HEADS)
    assigned.load_state_dict(former.double().state_dict(), assign=True)
    assert {(p.device.type, p.dtype) for p in assigned.parameters()} == {("cpu", torch.float64)}
    assert torch.equal(assigned(x.double(), (2, 3)), former(x.double(), (2, 3)))
    layer.load_state_dict(perturbed(MetaLA(DIM, HEADS)).state_dict())
    assert torch.count_nonzero(layer.decay_bias) == DIM // 2
    with pytest.raises(RuntimeError, match="decay_bias"):
        former.load_state_dict(layer.state_dict())
