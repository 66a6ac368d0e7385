"""The fused mixer in C against its formula in float64."""

import itertools
import re

import pytest
import torch
from fused_inputs import (
    ALL,
    GATES,
    GRIDS,
    SCANS,
    WIDTHS,
    double,
    errors,
    make,
    mixer_formula,
    name_of,
    permuted,
    run,
    run_mixer,
)
from tolerances import FLOAT32, FLOAT64, HALF, relative_rms

from metala_vision.kernels import available_backends, mixer

pytestmark = pytest.mark.skipif("cpu" not in available_backends(), reason="the C kernels do not run here")


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


@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("decay_scale", [0.25, 1.0, 4.0, 100.0])
def test_decay_scale(decay_scale, gate, backend):
    """Catches a scale that a gradient or a key has not heard of, and one that comes after the clamp."""
    inputs = make(7 * 9, 48, gate)
    grad_out = torch.randn_like(inputs["v"])
    arguments = (3, (7, 9), "column,row_reverse")
    expected = run(lambda leaves: mixer_formula(leaves, *arguments, decay_scale), double(inputs), grad_out)
    actual = run_mixer(inputs, grad_out, *arguments, backend, decay_scale)
    found = errors(actual, expected)
    assert max(found.values()) <= FLOAT32, found
    plain = run_mixer(inputs, grad_out, *arguments, backend)
    same = all(torch.equal(actual[name], plain[name]) for name in plain)
    assert same == (decay_scale == 1.0)
    if backend == "cpu":
        halves = {name: x.bfloat16() for name, x in inputs.items()}
        grad_out = grad_out.bfloat16()
        expected = run(lambda leaves: mixer_formula(leaves, *arguments, decay_scale), double(halves), grad_out)
        found = errors(run_mixer(halves, grad_out, *arguments, backend, decay_scale), expected)
        assert max(found.values()) <= HALF, found


@pytest.mark.parametrize("decay_scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_decay_scale_is_positive(decay_scale):
    inputs = make(63, 48)
    with pytest.raises(ValueError, match=f"decay_scale: got {decay_scale}, expected a positive number"):
        run_mixer(inputs, inputs["v"], 3, (7, 9), "row", "chunked", decay_scale)


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


@pytest.mark.parametrize("backend", ["cpu", "chunked", "chunked in float64"])
def test_logits_at_the_floor_learn_nothing(backend):
    """Catches a subgradient at the floor itself (a logit of -80) that is left to torch, or another one than in C."""
    inputs = make(63, 48)
    at_floor = torch.rand_like(inputs["logits"]) < 0.3
    beyond = torch.tensor([-80.0, -81.5, -300.0])[torch.randint(3, at_floor.shape)]
    inputs["logits"] = torch.where(at_floor, beyond, inputs["logits"])
    inputs = double(inputs) if "float64" in backend else inputs
    found = run_mixer(inputs, torch.randn_like(inputs["v"]), 3, (7, 9), ALL, backend.split()[0])
    assert torch.count_nonzero(found["logits"][at_floor]) == 0
    assert (found["logits"][~at_floor] != 0).all()


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
    "heads": (dict(num_heads=3), "num_heads: got 3 for 8 channels, expected 2 * num_heads to divide them"),
    "no-heads": (dict(num_heads=0), "num_heads: got 0 for 8 channels, expected"),
    "negative-heads": (dict(num_heads=-2), "num_heads: got -2 for 8 channels, expected"),
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
