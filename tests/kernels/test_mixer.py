"""The fused operators of a layer, in C, against their formulas in float64, written out below token by token."""

import io
import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from gla_inputs import ALL_ORDERS
from metala_vision.kernels import available_backends, conv_silu, cpu, mixer, swiglu, swiglu_mlp
from tolerances import FLOAT32, FLOAT64, HALF, relative_rms
from torch import Tensor, nn

from metala_vision.layers import MetaLA, SwiGLU

pytestmark = pytest.mark.skipif("cpu" not in available_backends(), reason="the C kernels do not run here")

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


def mixer_formula(inputs: dict[str, Tensor], heads: int, grid: tuple[int, int], scan: str) -> Tensor:
    """A32 to A37 of arXiv 2411.10741 in float64, token by token; inputs as leaves of float64."""
    projected = torch.cat([inputs[name] for name in ("q", "logits", "v", "z")], -1)
    dim = projected.shape[2] // 3
    q, logits, v, z = (x.unflatten(-1, (heads, -1)) for x in projected.split([dim // 2, dim // 2, dim, dim], -1))
    alpha = (sigmoid(logits) ** (1 / 16)).clamp(min=torch.tensor(-5.0, dtype=torch.float64).exp())
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
    inputs: dict[str, Tensor], grad_out: Tensor, heads: int, grid: tuple[int, int], scan: str, backend: str
) -> dict[str, Tensor]:
    def fused(leaves):
        projected = torch.cat([leaves[name] for name in ("q", "logits", "v", "z")], -1)
        return mixer(projected, leaves["gate_bias"], leaves["aug_weight"], heads, *grid, scan, backend)

    return run(fused, inputs, grad_out)


def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() for name, x in inputs.items()}


def errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative_rms(actual[name], x) for name, x in expected.items()}


# --- the mixer


@pytest.mark.parametrize(
    ("number", "grid", "scan"),
    [(number, *case) for number, case in enumerate(itertools.product(GRIDS, SCANS))],
    ids=[f"{name_of(grid)}-{scan}" for grid, scan in itertools.product(GRIDS, SCANS)],
)
def test_mixer_equals_the_formula(number, grid, scan):
    """Catches a wrong term in the output or in a gradient, at an end of a gate, or in the padding of a width."""
    dim, heads = WIDTHS[number % len(WIDTHS)]
    alone = grid == (1, 1)
    inputs = make(grid[0] * grid[1], dim, list(GATES)[number % len(GATES)], batch=64 if alone else 2)
    grad_out = torch.randn_like(inputs["v"])
    expected = run(lambda leaves: mixer_formula(leaves, heads, grid, scan), double(inputs), grad_out)
    found = errors(run_mixer(inputs, grad_out, heads, grid, scan, "cpu"), expected)
    allowed = dict.fromkeys(found, FLOAT32)
    if alone:
        # A single token's o is nearly a multiple of v, and the norm keeps nothing of its size: these three gradients
        # are small differences of large terms, where plain PyTorch in float32 does not reach the tolerance either.
        composed = errors(run_mixer(inputs, grad_out, heads, grid, scan, "chunked"), expected)
        allowed |= {name: max(FLOAT32, 4 * composed[name]) for name in ("q", "logits", "aug_weight")}
    assert all(error <= allowed[name] for name, error in found.items()), (found, allowed)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("dim", "heads"), WIDTHS)
def test_mixer_equals_the_composed_form(dim, heads, gate):
    """Catches a model whose numbers change with the backend that happens to run."""
    inputs = make(7 * 9, dim, gate)
    grad_out = torch.randn_like(inputs["v"])
    expected = run_mixer(inputs, grad_out, heads, (7, 9), ALL, "chunked")
    found = errors(run_mixer(inputs, grad_out, heads, (7, 9), ALL, "cpu"), expected)
    assert max(found.values()) <= FLOAT32, found


def test_young_mixer():
    """Catches digits lost beside the constant 1/2 of the augmentation: at initial weights the scan's output is small.

    The weight of the augmentation is zero, and projections are small, as a model's are before its first step.
    """
    inputs = {name: x * 0.02 for name, x in make(14 * 14, 192).items()}
    inputs["aug_weight"] = torch.zeros_like(inputs["aug_weight"])
    grad_out = torch.randn_like(inputs["v"])
    expected = run(lambda leaves: mixer_formula(leaves, 3, (14, 14), ALL), double(inputs), grad_out)
    found = errors(run_mixer(inputs, grad_out, 3, (14, 14), ALL, "cpu"), expected)
    assert max(found.values()) <= FLOAT32, found


@pytest.mark.parametrize("scan", ["row", "column_reverse", "row,row_reverse", ALL])
@pytest.mark.parametrize(("grid", "dim", "heads", "gate"), [((7, 9), 48, 3, "scale1"), ((15, 17), 20, 2, "saturated")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_mixer_in_half_precision(dtype, grid, dim, heads, gate, scan):
    """Catches a sum, a gate or a norm in half precision: only inputs and results may be rounded."""
    inputs = {name: x.to(dtype) for name, x in make(grid[0] * grid[1], dim, gate).items()}
    grad_out = torch.randn_like(inputs["v"])
    expected = run(lambda leaves: mixer_formula(leaves, heads, grid, scan), double(inputs), grad_out)
    actual = run_mixer(inputs, grad_out, heads, grid, scan, "cpu")
    assert {x.dtype for x in actual.values()} == {dtype}
    found = errors(actual, expected)
    assert max(found.values()) <= HALF, found


@pytest.mark.parametrize(
    ("dtype", "parameter_dtype"),
    [p for p in itertools.product([torch.float32, torch.bfloat16, torch.float16], repeat=2) if p[0] != p[1]],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
def test_mixer_with_parameters_of_another_dtype(dtype, parameter_dtype):
    """Catches a gradient in another dtype than its input, and parameters read as what they are not."""
    inputs = make(7 * 9, 48)
    inputs = {name: x.to(dtype if x.dim() == 3 else parameter_dtype) for name, x in inputs.items()}
    grad_out = torch.randn_like(inputs["v"])
    expected = run(lambda leaves: mixer_formula(leaves, 3, (7, 9), ALL), double(inputs), grad_out)
    actual = run_mixer(inputs, grad_out, 3, (7, 9), ALL, "cpu")
    assert actual["out"].dtype == dtype
    assert all(actual[name].dtype == x.dtype for name, x in inputs.items())
    for name, error in errors(actual, expected).items():
        assert error <= (FLOAT32 if actual[name].dtype == torch.float32 else HALF), name


@pytest.mark.parametrize("scan", ["row", "column_reverse", "row,row_reverse", ALL])
def test_mixer_gradcheck(scan):
    """Catches a derivative cut inside the composed form, which runs in float64."""
    inputs = {name: x.requires_grad_() for name, x in double(make(6, 8, batch=1)).items()}

    def apply(q, logits, v, z, gate_bias, aug_weight):
        return mixer(torch.cat([q, logits, v, z], -1), gate_bias, aug_weight, 2, 2, 3, scan)

    assert torch.autograd.gradcheck(apply, tuple(inputs.values()))
    expected = mixer_formula(inputs, 2, (2, 3), scan)
    assert relative_rms(apply(*inputs.values()), expected) <= FLOAT64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["permuted", "slice", "every_other", "tokens_first"])
def test_mixer_of_strided_tensors(layout, dtype):
    """Catches strides that are taken for contiguous ones, in the projection or in the gradient of the output."""
    shapes = {"projected": (2, 63, 144), "dy": (2, 63, 48)}
    tensors = {}
    for name, (batch, tokens, width) in shapes.items():
        tensors[name] = {
            "permuted": lambda b, n, c: permuted(torch.randn(b, n, c).to(dtype)),
            "slice": lambda b, n, c: torch.randn(b, n, c + 5).to(dtype)[..., 3 : c + 3],
            "every_other": lambda b, n, c: torch.randn(b, 2 * n, c).to(dtype)[:, ::2],
            "tokens_first": lambda b, n, c: torch.randn(n, b, c).to(dtype).transpose(0, 1),
        }[layout](batch, tokens, width)
    projected, dy = tensors["projected"], tensors["dy"]
    assert not projected.is_contiguous()
    assert not dy.is_contiguous()
    parameters = torch.randn(48), torch.randn(24)

    def apply(projected, dy):
        leaves = [projected.detach().requires_grad_(), *(x.clone().requires_grad_() for x in parameters)]
        out = mixer(*leaves, 3, 7, 9, ALL, "cpu")
        return out.detach(), *torch.autograd.grad(out, leaves, dy)

    for strided, contiguous in zip(apply(projected, dy), apply(projected.contiguous(), dy.contiguous())):
        assert torch.equal(strided, contiguous)


@pytest.mark.parametrize("backend", ["cpu", "chunked"])
def test_gradients_of_a_sum(backend):
    """Catches a zero-stride gradient of the output read as if its elements lay side by side."""
    inputs = make(63, 48)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    projected = torch.cat([leaves[name] for name in ("q", "logits", "v", "z")], -1)
    mixer(projected, leaves["gate_bias"], leaves["aug_weight"], 3, 7, 9, ALL, backend).sum().backward()
    expected = run(lambda leaves: mixer_formula(leaves, 3, (7, 9), ALL), double(inputs))
    del expected["out"]
    found = errors({name: x.grad for name, x in leaves.items()}, expected)
    assert max(found.values()) <= FLOAT32, found


def test_mixer_without_gradients_is_the_same():
    """Catches another result where nothing is kept for the backward pass, in each number of orders."""
    for scan in SCANS:
        inputs = make(63, 48)
        projected = torch.cat([inputs[name] for name in ("q", "logits", "v", "z")], -1).requires_grad_()
        arguments = (inputs["gate_bias"], inputs["aug_weight"], 3, 7, 9, scan, "cpu")
        expected = mixer(projected, *arguments)
        assert expected.requires_grad
        with torch.no_grad():
            assert torch.equal(mixer(projected, *arguments), expected)
        with torch.inference_mode():
            assert torch.equal(mixer(projected, *arguments), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast_leaves_the_mixer_alone(dtype):
    """Catches sums of the mixer, fused or composed, that autocast turns into half precision."""
    inputs = make(63, 48)
    grad_out = torch.randn_like(inputs["v"])
    for backend in ("cpu", "chunked"):
        expected = run_mixer(inputs, grad_out, 3, (7, 9), ALL, backend)
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        with torch.autocast("cpu", dtype):
            projected = torch.cat([leaves[name] for name in ("q", "logits", "v", "z")], -1)
            out = mixer(projected, leaves["gate_bias"], leaves["aug_weight"], 3, 7, 9, ALL, backend)
        actual = [out, *torch.autograd.grad(out, list(leaves.values()), grad_out)]  # outside, as PyTorch asks for
        assert all(torch.equal(a, b) for a, b in zip(actual, expected.values()))
        assert {x.dtype for x in actual} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("part", ["q", "logits", "v", "z"])
@pytest.mark.parametrize("token", [0, 15, 16, 40, 62])
def test_nan_stays_with_those_who_see_it(token, part, dtype):
    """Catches a NaN that reaches an earlier token through a chunk, or one that a clamp swallows."""
    inputs = make(63, 48)
    poisoned = {**inputs, part: inputs[part].clone()}
    poisoned[part][:, token] = float("nan")
    outs = []
    for x in (inputs, poisoned):
        projected = torch.cat([x[name] for name in ("q", "logits", "v", "z")], -1).to(dtype)
        outs.append(mixer(projected, x["gate_bias"], x["aug_weight"], 3, 7, 9, "row", "cpu"))
    clean, out = outs
    assert clean.isfinite().all()
    later = out[:, token + 1 :]
    assert torch.equal(out[:, :token], clean[:, :token])
    assert out[:, token].isnan().all()
    assert torch.equal(later, clean[:, token + 1 :]) if part in ("q", "z") else later.isnan().all()


BAD_MIXER = {
    "projected-2d": (dict(projected=(6, 24)), "projected: got shape (6, 24), expected [B, N, 3 C]"),
    "projected-4d": (dict(projected=(1, 2, 3, 24)), "projected: got shape (1, 2, 3, 24), expected [B, N, 3 C]"),
    "projected-width": (dict(projected=(1, 6, 25)), "projected: got shape (1, 6, 25), expected [B, N, 3 C]"),
    "projected-empty": (dict(projected=(1, 6, 0)), "projected: got shape (1, 6, 0), expected [B, N, 3 C]"),
    "heads": (dict(num_heads=3), "projected: got shape (1, 6, 24), expected [B, N, 3 C] with C a multiple of 6"),
    "no-heads": (dict(num_heads=0), "num_heads: got 0, expected"),
    "negative-heads": (dict(num_heads=-2), "num_heads: got -2, expected"),
    "gate_bias": (dict(gate_bias=(4,)), "gate_bias, aug_weight: got shapes (4,), (4,), expected (8,), (4,)"),
    "aug_weight": (dict(aug_weight=(8,)), "gate_bias, aug_weight: got shapes (8,), (8,), expected (8,), (4,)"),
    "gate_bias-2d": (dict(gate_bias=(2, 4)), "gate_bias, aug_weight: got shapes (2, 4), (4,), expected"),
    "grid": (dict(rows=2, cols=4), "grid: got (2, 4), expected (rows, cols) with rows * cols == 6 tokens"),
    "grid-negative": (dict(rows=-2, cols=-3), "grid: got (-2, -3), expected (rows, cols) with rows * cols == 6"),
    "scan-empty": (dict(scan=""), "scan: got (), expected a non-empty tuple out of"),
    "scan-twice": (dict(scan="row,row"), "scan: got ('row', 'row'), expected a non-empty tuple out of"),
    "scan-unknown": (dict(scan="diagonal"), "scan: got ('diagonal',), expected a non-empty tuple out of"),
    "backend": (dict(backend="fpga"), "backend: got 'fpga', expected None or one of"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_MIXER.values(), ids=BAD_MIXER)
def test_bad_input_of_the_mixer(arguments, message):
    """Catches sizes that the C code would believe."""
    good = dict(projected=(1, 6, 24), gate_bias=(8,), aug_weight=(4,), num_heads=2, rows=2, cols=3, scan="row")

    def apply(arguments):
        return mixer(**{name: torch.zeros(x) if isinstance(x, tuple) else x for name, x in arguments.items()})

    apply(good)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        apply(good | arguments)


@pytest.mark.parametrize("name", ["gate_bias", "aug_weight"])
def test_mixer_with_a_parameter_elsewhere(name):
    """Catches an address of another device given to the C code: a layer that was moved in part."""
    parameters = {"gate_bias": torch.zeros(8), "aug_weight": torch.zeros(4)}
    parameters[name] = parameters[name].to("meta")
    with pytest.raises(ValueError, match=f"^{name}: got device meta, expected cpu"):
        mixer(torch.zeros(1, 6, 24), **parameters, num_heads=2, rows=2, cols=3, scan="row")


# --- convolution and SwiGLU


def conv_inputs(grid: tuple[int, int], channels: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    inputs = {"x": 2 * torch.randn(2, grid[0] * grid[1], channels), "weight": torch.randn(channels, 1, 3, 3)}
    return {name: x.to(dtype) for name, x in inputs.items()}


@pytest.mark.parametrize("channels", [1, 5, 16, 20, 33, 48, 192])
@pytest.mark.parametrize("grid", [*GRIDS, (7, 1), (2, 2)], ids=name_of)
def test_conv_silu_equals_the_formula(grid, channels):
    """Catches a tap at the wrong place, an edge that is no zero, and lanes beyond the last channel."""
    inputs = conv_inputs(grid, channels)
    grad_out = torch.randn_like(inputs["x"])
    expected = run(lambda leaves: conv_formula(**leaves, rows=grid[0], cols=grid[1]), double(inputs), grad_out)
    found = errors(run(lambda leaves: conv_silu(**leaves, rows=grid[0], cols=grid[1]), inputs, grad_out), expected)
    assert max(found.values()) <= FLOAT32, found


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
    ids=["bfloat16", "bfloat16-float32", "float32-bfloat16"],
)
@pytest.mark.parametrize(("grid", "channels"), [((7, 9), 20), ((15, 17), 33)], ids=["7x9", "15x17"])
def test_conv_silu_in_other_dtypes(grid, channels, dtype, weight_dtype):
    """Catches sums in bfloat16, and a gradient in another dtype than its input."""
    inputs = conv_inputs(grid, channels)
    inputs = {"x": inputs["x"].to(dtype), "weight": inputs["weight"].to(weight_dtype)}
    grad_out = torch.randn_like(inputs["x"])
    expected = run(lambda leaves: conv_formula(**leaves, rows=grid[0], cols=grid[1]), double(inputs), grad_out)
    actual = run(lambda leaves: conv_silu(**leaves, rows=grid[0], cols=grid[1]), inputs, grad_out)
    assert {name: x.dtype for name, x in actual.items()} == {"out": dtype, "x": dtype, "weight": weight_dtype}
    for name, error in errors(actual, expected).items():
        assert error <= (FLOAT32 if actual[name].dtype == torch.float32 else HALF), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_conv_silu_under_autocast(dtype):
    """Catches a convolution that autocast does not reach, or whose float32 parameters get a rounded gradient."""
    inputs = conv_inputs((7, 9), 20)
    grad_out = torch.randn_like(inputs["x"]).to(dtype)
    expected = run(lambda leaves: conv_formula(**leaves, rows=7, cols=9), double(inputs), grad_out)

    def fused(leaves):
        with torch.autocast("cpu", dtype):
            return conv_silu(**leaves, rows=7, cols=9)

    actual = run(fused, inputs, grad_out)
    assert {name: x.dtype for name, x in actual.items()} == dict(out=dtype, x=torch.float32, weight=torch.float32)
    if dtype == torch.bfloat16:  # in C, where the output alone is rounded; float16 is torch's own convolution
        tolerances = dict(out=HALF, x=FLOAT32, weight=FLOAT32)
        assert all(error <= tolerances[name] for name, error in errors(actual, expected).items())
        assert torch.equal(actual["out"], conv_silu(**inputs, rows=7, cols=9).to(dtype))


def test_conv_silu_of_half_inputs_under_autocast():
    """Catches bfloat16 tokens that autocast turns into something else."""
    inputs = conv_inputs((7, 9), 20, torch.bfloat16)
    expected = conv_silu(**inputs, rows=7, cols=9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv_silu(**inputs, rows=7, cols=9), expected)


def test_conv_silu_nan_reaches_its_neighbours_alone():
    """Catches a window that does not slide, or wraps around the edge of the image."""
    inputs = conv_inputs((5, 6), 20)
    clean = conv_silu(**inputs, rows=5, cols=6)
    inputs["x"][:, 2 * 6 + 5] = float("nan")  # the end of the third row
    out = conv_silu(**inputs, rows=5, cols=6).unflatten(1, (5, 6))
    seen = torch.zeros(5, 6, dtype=torch.bool)
    seen[1:4, 4:6] = True
    assert out[:, seen].isnan().all()
    assert torch.equal(out[:, ~seen], clean.unflatten(1, (5, 6))[:, ~seen])


BAD_CONV = {
    "grid": (dict(rows=2, cols=4), "grid: got (2, 4), expected (rows, cols) with rows * cols == 6 tokens"),
    "grid-negative": (dict(rows=-2, cols=-3), "grid: got (-2, -3), expected"),
    "x-2d": (dict(x=(6, 8)), "x: got shape (6, 8), expected"),
    "x-4d": (dict(x=(1, 6, 1, 8)), "x: got shape (1, 6, 1, 8), expected"),
    "fewer-filters": (dict(weight=(4, 1, 3, 3)), "weight: got shape (4, 1, 3, 3), expected"),
    "more-filters": (dict(weight=(16, 1, 3, 3)), "weight: got shape (16, 1, 3, 3), expected"),
    "full-filters": (dict(weight=(8, 8, 3, 3)), "weight: got shape (8, 8, 3, 3), expected"),
    "size": (dict(weight=(8, 1, 5, 5)), "weight: got shape (8, 1, 5, 5), expected"),
    "one-dimension": (dict(weight=(8, 1, 9)), "weight: got shape (8, 1, 9), expected"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_CONV.values(), ids=BAD_CONV)
def test_bad_input_of_conv_silu(arguments, message):
    """Catches sizes that the C code would believe: a weight of fewer channels is read beyond its end."""
    good = dict(x=(1, 6, 8), weight=(8, 1, 3, 3), rows=2, cols=3)

    def apply(arguments):
        return conv_silu(**{name: torch.zeros(x) if isinstance(x, tuple) else x for name, x in arguments.items()})

    apply(good)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        apply(good | arguments)


def test_conv_silu_with_a_weight_elsewhere():
    """Catches an address of another device given to the C code."""
    with pytest.raises(ValueError, match="^weight: got device meta, expected cpu"):
        conv_silu(torch.zeros(1, 6, 8), torch.zeros(8, 1, 3, 3, device="meta"), 2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2,), (7, 10), (2, 3, 66), (2, 63, 48), (1, 1, 1, 128)], ids=str)
def test_swiglu_equals_the_formula(shape, dtype):
    """Catches gate and value swapped, an exponential out of range, and lanes beyond the last channel."""
    inputs = {"x": (torch.randn(shape) * torch.tensor([1.0, 60.0])[torch.randint(2, shape)]).to(dtype)}
    grad_out = torch.randn(*shape[:-1], shape[-1] // 2).to(dtype)
    expected = run(lambda leaves: swiglu_formula(leaves["x"]), double(inputs), grad_out)
    actual = run(lambda leaves: swiglu(leaves["x"]), inputs, grad_out)
    assert {x.dtype for x in actual.values()} == {dtype}
    found = errors(actual, expected)
    assert max(found.values()) <= (FLOAT32 if dtype == torch.float32 else HALF), found


def test_swiglu_nan_stays_with_its_channel():
    """Catches a NaN that spreads over a vector, or that an exponential's clamp swallows."""
    x = torch.randn(5, 40)
    clean = swiglu(x)
    for at in (3, 23):  # a gate and the value beside it
        poisoned = x.clone()
        poisoned[2, at] = float("nan")
        out = swiglu(poisoned)
        assert out[2, 3].isnan()
        out[2, 3] = clean[2, 3]
        assert torch.equal(out, clean)


@pytest.mark.parametrize("layout", ["permuted", "slice", "transposed"])
def test_elementwise_of_strided_tensors(layout):
    """Catches strides that are taken for contiguous ones, in inputs or in gradients of the output."""

    def strided(batch: int, tokens: int, channels: int) -> Tensor:
        if layout == "permuted":
            return permuted(torch.randn(batch, tokens, channels))
        if layout == "slice":
            return torch.randn(batch, tokens, channels + 3)[..., 2:-1]
        return torch.randn(channels, tokens, batch).permute(2, 1, 0)

    weight = torch.randn(3, 3, 1, 24).permute(3, 2, 0, 1)
    x, dy, half_dy = strided(2, 63, 24), strided(2, 63, 24), strided(2, 63, 12)
    for apply, inputs, dout in [
        (lambda leaves: conv_silu(**leaves, rows=7, cols=9), dict(x=x, weight=weight), dy),
        (lambda leaves: swiglu(leaves["x"]), dict(x=x), half_dy),
    ]:
        assert not dout.is_contiguous()
        expected = run(apply, {name: t.contiguous() for name, t in inputs.items()}, dout.contiguous())
        leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
        assert not leaves["x"].is_contiguous()
        out = apply(leaves)
        actual = [out, *torch.autograd.grad(out, list(leaves.values()), dout)]
        assert all(torch.equal(a, b) for a, b in zip(actual, expected.values()))


def test_elementwise_gradients_of_a_sum():
    """Catches a zero-stride gradient of the output read as if its elements lay side by side."""
    inputs = conv_inputs((7, 9), 20)
    for function, formula, given in [
        (lambda x, weight: conv_silu(x, weight, 7, 9), lambda x, weight: conv_formula(x, weight, 7, 9), inputs),
        (swiglu, swiglu_formula, {"x": inputs["x"]}),
    ]:
        leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
        function(**leaves).sum().backward()
        expected = run(lambda leaves, formula=formula: formula(**leaves), double(given))
        del expected["out"]
        found = errors({name: x.grad for name, x in leaves.items()}, expected)
        assert max(found.values()) <= FLOAT32, found


def test_elementwise_gradcheck():
    """Catches a derivative cut inside the composed forms, which run in float64."""
    inputs = [x.requires_grad_() for x in double(conv_inputs((2, 3), 4)).values()]
    assert torch.autograd.gradcheck(lambda x, weight: conv_silu(x, weight, 2, 3), inputs)
    assert torch.autograd.gradcheck(swiglu, inputs[:1])
    assert relative_rms(conv_silu(*inputs, 2, 3), conv_formula(*inputs, 2, 3)) <= FLOAT64
    assert relative_rms(swiglu(inputs[0]), swiglu_formula(inputs[0])) <= FLOAT64


@pytest.mark.parametrize("width", [1, 7])
def test_swiglu_of_an_odd_width(width):
    """Catches a result for channels that do not come in pairs of gate and value."""
    with pytest.raises(ValueError, match=rf"^x: got shape \(3, {width}\), expected"):
        swiglu(torch.randn(3, width))


# --- the MLP in tiles


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("tokens", "tile", "tiles", "ragged"),
    [(37, 8, 5, True), (13, 8, 2, True), (16, 8, 2, False), (8, 100, 1, False), (1, 8, 1, False), (3, 1, 3, False)],
    ids=["five", "two", "even", "one-tile", "one-token", "single-tokens"],
)
def test_mlp_in_tiles(monkeypatch, tokens, tile, tiles, ragged, dtype):
    """Catches tokens lost or taken twice at the border of a tile, above all in a last one that is not full."""
    hidden = 40
    monkeypatch.setattr(cpu, "MLP_TILE", tile)
    seen, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda x, *rest, **out: (seen.append(x.shape[0]), mm(x, *rest, **out))[1])
    x = torch.randn(tokens, 12).to(dtype)
    weight_in, weight_out = (torch.randn(shape).to(dtype) for shape in [(hidden, 12), (10, hidden // 2)])
    out = swiglu_mlp(x, weight_in, weight_out)
    sizes = seen[::2]
    assert seen == [size for size in sizes for _ in range(2)]  # two products for each tile
    assert (len(sizes), sum(sizes)) == (tiles, tokens)
    assert (sizes[-1] < sizes[0]) == ragged
    inner = x.double() @ weight_in.double().t()
    if dtype == torch.float32:
        assert relative_rms(out, swiglu_formula(inner) @ weight_out.double().t()) <= FLOAT32
    else:  # the composed form rounds between the products too
        assert relative_rms(out, nn.functional.linear(swiglu(nn.functional.linear(x, weight_in)), weight_out)) <= HALF
    assert out.dtype == dtype


@pytest.mark.parametrize("shape", [(2, 37, 12), (12,), (2, 3, 5, 12), (0, 37, 12)], ids=str)
def test_mlp_with_and_without_gradients(shape):
    """Catches an inference that is not the training's forward pass, in shape or in numbers."""
    x, weights = torch.randn(shape), (torch.randn(40, 12), torch.randn(10, 20))
    expected = swiglu_mlp(x, *(w.clone().requires_grad_() for w in weights))
    assert expected.requires_grad
    out = swiglu_mlp(x, *weights)
    assert not out.requires_grad
    assert relative_rms(out, expected) <= FLOAT32
    strided = torch.randn(*shape[:-1], 13)[..., 1:].copy_(x)
    assert torch.equal(swiglu_mlp(strided, *weights), out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["float16", "float64"])
def test_mlp_in_other_dtypes(dtype):
    """Catches bytes of a dtype that the C code does not know, read as float32."""
    x, weights = torch.randn(37, 12).to(dtype), (torch.randn(40, 12).to(dtype), torch.randn(10, 20).to(dtype))
    expected = swiglu_mlp(x, *(w.clone().requires_grad_() for w in weights))
    out = swiglu_mlp(x, *weights)
    assert (out.dtype, expected.dtype) == (dtype, dtype)
    assert relative_rms(out, expected) <= (HALF if dtype == torch.float16 else FLOAT64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_mlp_under_autocast(dtype):
    """Catches an inference that leaves autocast out, or comes back in another dtype than training."""
    x, weights = torch.randn(37, 12), (torch.randn(40, 12), torch.randn(10, 20))
    with torch.autocast("cpu", dtype):
        expected = swiglu_mlp(x, *(w.clone().requires_grad_() for w in weights))
        out = swiglu_mlp(x, *weights)
    assert (out.dtype, expected.dtype) == (dtype, dtype)
    assert relative_rms(out, expected) <= HALF


def test_mlp_gradients():
    """Catches a path that forgets the gradient of one of the two weights."""
    inputs = {"x": torch.randn(37, 12), "weight_in": torch.randn(40, 12), "weight_out": torch.randn(10, 20)}
    grad_out = torch.randn(37, 10)

    def formula(leaves):
        return swiglu_formula(leaves["x"] @ leaves["weight_in"].t()) @ leaves["weight_out"].t()

    expected = run(formula, double(inputs), grad_out)
    found = errors(run(lambda leaves: swiglu_mlp(**leaves), inputs, grad_out), expected)
    assert max(found.values()) <= FLOAT32, found


class Adapted(nn.Linear):
    """A linear layer with something added to its output, as an adapter has."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C'], shifted."""
        return super().forward(x) + 1


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", ["fc1", "fc2"])
@pytest.mark.parametrize("way", ["hook", "pre_hook", "subclass", "bias", "own_forward", "backward_hook"])
def test_swiglu_layer_calls_what_is_put_in_its_place(way, name, training):
    """Catches a fused product that reads the weight and passes over a hook, an adapter or a bias."""
    layer = SwiGLU(12, 20).train(training)
    linear, calls = getattr(layer, name), []
    x = torch.randn(2, 7, 12, requires_grad=training)
    before = layer(x)
    if way == "hook":
        linear.register_forward_hook(lambda module, arguments, out: calls.append(1))
    elif way == "pre_hook":
        linear.register_forward_pre_hook(lambda module, arguments: calls.append(1))
    elif way == "backward_hook":
        linear.register_full_backward_hook(lambda module, inputs, outputs: calls.append(1))
    elif way == "own_forward":
        linear.forward = lambda x: (calls.append(1), nn.Linear.forward(linear, x))[1]
    else:
        other = (Adapted if way == "subclass" else nn.Linear)(
            linear.in_features, linear.out_features, bias=way == "bias"
        )
        other.weight = linear.weight
        setattr(layer, name, other)
    with torch.set_grad_enabled(training):
        out = layer(x)
    if way in ("subclass", "bias"):
        assert relative_rms(out, before) > 0.05
        return
    assert relative_rms(out, before) <= FLOAT32
    if way == "backward_hook":
        if not training:
            return
        out.sum().backward()
    assert calls == [1]


# --- what PyTorch asks of an operator


def raw_calls() -> dict[str, tuple]:
    """One call of each registered operator: its tensors, then the rest of its arguments."""
    q, g, v, k = (torch.randn(2, 63, 2, n) for n in (8, 8, 12, 8))
    projected, bias, aug, dy = torch.randn(2, 63, 144), torch.randn(48), torch.randn(24), torch.randn(2, 63, 48)
    x, weight = torch.randn(2, 63, 20), torch.randn(20, 1, 3, 3)
    mlp = (torch.randn(2, 7, 12), torch.randn(40, 12), torch.randn(10, 20))
    problem = (7, 9, ALL)
    return {
        "scan_forward": ((q, g, v), (None, *problem, 0.3)),
        "scan_forward-k": ((q, g, v, k), (*problem, 0.3)),
        "scan_backward": ((torch.randn_like(v), q, g, v), (None, *problem, 0.3)),
        "scan_backward-k": ((torch.randn_like(v), q, g, v, k), (*problem, 0.3)),
        "mixer_forward": ((projected, bias, aug), (3, *problem, False)),
        "mixer_forward-keep": ((projected, bias, aug), (3, *problem, True)),
        "mixer_forward-one": ((projected, bias, aug), (3, 7, 9, "row", False)),
        "mixer_backward": ((dy, torch.randn(2, 63, 48), projected, bias, aug), (3, *problem)),
        "conv_silu_forward": ((x, weight), (7, 9, torch.float32)),
        "conv_silu_forward-half": ((x, weight), (7, 9, torch.bfloat16)),
        "conv_silu_backward": ((torch.randn_like(x), x, weight), (7, 9)),
        "swiglu_forward": ((x,), ()),
        "swiglu_backward": ((torch.randn(2, 63, 10), x), ()),
        "swiglu_mlp_forward": (mlp, ()),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", raw_calls())
def test_opcheck(name, layout):
    """Catches a schema that lies about aliases, and a fake whose shape, stride or dtype is not the kernel's."""
    tensors, rest = raw_calls()[name]
    if layout == "permuted":
        tensors = tuple(permuted(x) if x.dim() > 1 else x for x in tensors)
    assert not any(x.requires_grad for x in tensors)
    operator = getattr(torch.ops.metala, name.split("-")[0])
    torch.library.opcheck(operator, (*tensors, *rest))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["scan_forward-k", "scan_backward-k", "mixer_forward-keep", "swiglu_backward"])
def test_operators_write_no_input(name, layout):
    """Catches a kernel that uses an argument as scratch."""
    tensors, rest = raw_calls()[name]
    tensors = tuple(permuted(x) if x.dim() > 1 and layout == "permuted" else x for x in tensors)
    before = [x.clone() for x in tensors]
    getattr(torch.ops.metala, name.split("-")[0])(*tensors, *rest)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))


@pytest.mark.parametrize("name", raw_calls())
def test_repeated_calls_are_bit_equal(name):
    """Catches an order of summation, or memory nobody wrote, that differs between two calls."""
    tensors, rest = raw_calls()[name]
    operator = getattr(torch.ops.metala, name.split("-")[0])
    first = operator(*tensors, *rest)
    garbage = [torch.full((1 << n,), float("nan")) for n in range(6, 20)]  # what the next call's memory will hold
    del garbage
    second = operator(*tensors, *rest)
    pairs = zip(first, second) if isinstance(first, tuple) else [(first, second)]
    assert all(torch.equal(a, b) for a, b in pairs)


def in_a_new_thread(function):
    """Its result, from a thread that has called nothing before."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_calls_leave_nothing_behind():
    """Catches memory kept from one call to the next whose size, dtype or mode decides what the next one does."""
    layer = SwiGLU(24, 40)
    weights = [p.detach() for p in layer.parameters()]

    def one(tokens: int, dtype: torch.dtype, mode: str):
        generator = torch.Generator().manual_seed(tokens)
        x = torch.randn(2, tokens, 24, generator=generator).to(dtype)
        projected, aug = torch.cat([x] * 2, -1), torch.linspace(-1, 1, 8)
        modes = {"inference": torch.inference_mode, "no_grad": torch.no_grad, "training": torch.enable_grad}
        with modes[mode]():
            leaf = projected.clone().requires_grad_(mode == "training")
            out = mixer(leaf, torch.linspace(-2, 1, 16), aug, 2, 1, tokens, "row,row_reverse", "cpu")
            results = [out.clone(), swiglu_mlp(x, *(w.to(dtype) for w in weights)).clone()]
        if mode == "training":
            out.square().sum().backward()
            results.append(leaf.grad)
        return [result.detach().clone() for result in results]

    calls = [
        (tokens, dtype, mode)
        for dtype in (torch.float32, torch.bfloat16, torch.float32)
        for mode in ("inference", "no_grad", "training", "inference", "training")
        for tokens in (7, 300, 1)
    ]
    together = in_a_new_thread(lambda: [one(*call) for call in calls])
    for call, results in zip(calls, together):
        assert all(torch.equal(a, b) for a, b in zip(results, in_a_new_thread(lambda call=call: one(*call)))), call


@pytest.mark.parametrize("operator", ["mixer", "conv_silu", "swiglu", "swiglu_mlp"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_no_images(operator, training):
    """Catches an empty batch, the last of a data loader or a detector without boxes, that ends in an error."""
    x = torch.randn(0, 6, 24).requires_grad_(training)
    weight = torch.randn(24, 1, 3, 3).requires_grad_(training)
    out, width = {
        "mixer": lambda: (mixer(x, torch.randn(8), torch.randn(4), 2, 2, 3, ALL), 8),
        "conv_silu": lambda: (conv_silu(x, weight, 2, 3), 24),
        "swiglu": lambda: (swiglu(x), 12),
        "swiglu_mlp": lambda: (swiglu_mlp(x, torch.randn(40, 24), torch.randn(10, 20)), 10),
    }[operator]()
    assert out.shape == (0, 6, width)
    if training:
        out.sum().backward()
        assert x.grad.shape == x.shape
        assert weight.grad is None or torch.count_nonzero(weight.grad) == 0


@pytest.mark.parametrize("operator", ["gated_linear_attention", "mixer", "conv_silu", "swiglu"])
def test_double_backward_raises(operator):
    """Catches a second derivative that is silently zero: the C kernels have none."""
    x = torch.randn(1, 6, 24, requires_grad=True)
    inputs = [torch.randn(1, 6, 2, 4, requires_grad=True) for _ in range(3)]
    out, leaf = {
        "gated_linear_attention": lambda: (
            torch.ops.metala.gated_linear_attention(*inputs, None, 2, 3, ALL, None, "cpu"),
            inputs[0],
        ),
        "mixer": lambda: (mixer(x, torch.randn(8), torch.randn(4), 2, 2, 3, ALL, "cpu"), x),
        "conv_silu": lambda: (conv_silu(x, torch.randn(24, 1, 3, 3), 2, 3), x),
        "swiglu": lambda: (swiglu(x), x),
    }[operator]()
    (gradient,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def layers() -> dict[str, tuple[nn.Module, tuple]]:
    metala, mlp = MetaLA(48, 3, scan=ALL_ORDERS), SwiGLU(24, 40)
    with torch.no_grad():
        for p in metala.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
    return {"MetaLA": (metala, (torch.randn(2, 63, 48), (7, 9))), "SwiGLU": (mlp, (torch.randn(2, 7, 24),))}


@pytest.mark.parametrize("name", ["MetaLA", "SwiGLU"])
def test_compile_fullgraph_forward_and_backward(name):
    """Catches a graph break in a layer, and a compiled gradient that is not the eager one."""
    torch.compiler.reset()
    layer, arguments = layers()[name]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def apply(function):
        x = arguments[0].clone().requires_grad_()
        out = function(x, *arguments[1:])
        return [out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])]

    assert all(relative_rms(a, b) <= FLOAT32 for a, b in zip(apply(compiled), apply(layer)))
    with torch.no_grad():
        assert relative_rms(compiled(*arguments), layer(*arguments)) <= FLOAT32


@pytest.mark.parametrize("name", ["MetaLA", "SwiGLU"])
def test_export_save_and_load(name):
    """Catches a layer that torch.export cannot trace, or whose program does not survive a file."""
    layer, arguments = layers()[name]
    program = torch.export.export(layer.eval(), arguments)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    other = (torch.randn_like(arguments[0]), *arguments[1:])
    with torch.no_grad():
        expected = layer(*other)
        assert relative_rms(loaded(*other), expected) <= FLOAT32
        assert relative_rms(expected, layer(*arguments)) > 0.1
