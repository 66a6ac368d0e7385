"""What the operator promises whatever the numbers: symmetry, causality, bounds, and the clamp of the gate."""

import pytest
import torch
from gla_inputs import ALL_ORDERS, cast, make, run
from tolerances import FLOAT32, FLOAT64, relative_rms

from metala_vision.kernels import GATE_FLOOR, available_backends, gated_linear_attention

BACKENDS = [name for name in available_backends() if name != "reference"]
TOLERANCE = {torch.float32: FLOAT32, torch.float64: FLOAT64}
# Each backend in float32, and chunked in float64 as well.
pytestmark = pytest.mark.parametrize(
    ("backend", "dtype"),
    [("chunked", torch.float64), *((name, torch.float32) for name in BACKENDS)],
    ids=lambda x: str(x).removeprefix("torch."),
)
GRID = (7, 9)


def inputs_for(dtype: torch.dtype, gate: str = "tau1", **kwargs) -> dict[str, torch.Tensor]:
    return cast(make(GRID[0] * GRID[1], gate=gate, **kwargs), dtype)


def transpose(inputs: dict[str, torch.Tensor], grid: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The tokens of the transposed grid, row-major."""
    return {name: x.unflatten(1, grid).transpose(1, 2).flatten(1, 2) for name, x in inputs.items()}


@pytest.mark.parametrize("axis", ["row", "column"])
def test_reverse_is_flip_scan_flip(axis, backend, dtype):
    """Catches a reverse scan that shifts the decay by one token: forwards alpha_t applies, backwards alpha_t too."""
    inputs = inputs_for(dtype)
    flipped = {name: x.flip(1) for name, x in inputs.items()}
    expected = gated_linear_attention(**flipped, grid=GRID, scan=(axis,), backend=backend).flip(1)
    actual = gated_linear_attention(**inputs, grid=GRID, scan=(f"{axis}_reverse",), backend=backend)
    assert relative_rms(actual, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("suffix", ["", "_reverse"], ids=["forward", "reverse"])
def test_column_is_transpose_scan_transpose(suffix, backend, dtype):
    """Catches rows and columns taken for one another: the grid is not square."""
    inputs = inputs_for(dtype)
    kwargs = dict(grid=GRID[::-1], scan=(f"row{suffix}",), backend=backend)
    expected = gated_linear_attention(**transpose(inputs, GRID), **kwargs)
    expected = expected.unflatten(1, GRID[::-1]).transpose(1, 2).flatten(1, 2)
    actual = gated_linear_attention(**inputs, grid=GRID, scan=(f"column{suffix}",), backend=backend)
    assert relative_rms(actual, expected) <= TOLERANCE[dtype]


def test_sequence_of_orders_does_not_matter(backend, dtype):
    """Catches an own term that belongs to the order named first."""
    inputs = inputs_for(dtype)
    forwards = gated_linear_attention(**inputs, grid=GRID, scan=ALL_ORDERS, backend=backend)
    backwards = gated_linear_attention(**inputs, grid=GRID, scan=ALL_ORDERS[::-1], backend=backend)
    assert relative_rms(backwards, forwards) <= TOLERANCE[dtype]


def test_batch_and_head_permutation(backend, dtype):
    """Catches a state that leaks from one image or head to the next."""
    inputs = inputs_for(dtype, batch=3, heads=4)
    kwargs = dict(grid=GRID, scan=ALL_ORDERS, backend=backend)
    images, heads = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
    permuted = {name: x[images][:, :, heads] for name, x in inputs.items()}
    expected = gated_linear_attention(**inputs, **kwargs)[images][:, :, heads]
    assert relative_rms(gated_linear_attention(**permuted, **kwargs), expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("token", [1, 8, 15, 16, 24, 33, 62])
def test_causal_in_one_order(token, backend, dtype):
    """Catches a token that hears from later ones: an off-by-one mask, or a wrong chunk boundary.

    q, k and v of later tokens leave no trace at all. Their gates do not enter the result either, but may enter its
    rounding, since a backend is free to choose the point to which it refers the decays of a chunk.
    """
    inputs = inputs_for(dtype, with_k=True)
    kwargs = dict(grid=GRID, backend=backend)
    before = gated_linear_attention(**inputs, **kwargs)[:, :token]
    later = make(GRID[0] * GRID[1] - token, with_k=True)
    changed = {name: torch.cat([x[:, :token], 3 * later[name].to(dtype)], 1) for name, x in inputs.items()}
    same_gates = changed | {"log_decay": inputs["log_decay"]}
    after = gated_linear_attention(**same_gates, **kwargs)
    assert torch.equal(after[:, :token], before)
    assert not torch.equal(after[:, token:], gated_linear_attention(**inputs, **kwargs)[:, token:])
    assert relative_rms(gated_linear_attention(**changed, **kwargs)[:, :token], before) <= TOLERANCE[dtype]


@pytest.mark.parametrize("order", ALL_ORDERS)
def test_what_a_token_hears(order, backend, dtype):
    """Catches a scan that visits in another sequence: the gradient of one output reaches exactly the tokens so far."""
    inputs = inputs_for(dtype, gate="tau16", batch=1)
    v = inputs["v"].requires_grad_()
    row, column = 3, 5
    out = gated_linear_attention(inputs["q"], inputs["log_decay"], v, grid=GRID, scan=(order,), backend=backend)
    (gradient,) = torch.autograd.grad(out.unflatten(1, GRID)[:, row, column].sum(), v)
    heard = gradient.abs().sum((0, 2, 3)).unflatten(0, GRID) > 0
    rows, columns = torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij")
    expected = {
        "row": (rows < row) | ((rows == row) & (columns <= column)),
        "row_reverse": (rows > row) | ((rows == row) & (columns >= column)),
        "column": (columns < column) | ((columns == column) & (rows <= row)),
        "column_reverse": (columns > column) | ((columns == column) & (rows >= row)),
    }[order]
    assert torch.equal(heard, expected)


def test_open_gate_gives_zero(backend, dtype):
    """Catches k = 1 - exp(g) that is not exactly 0 at g = 0: nothing is ever written."""
    inputs = inputs_for(dtype)
    inputs["log_decay"] = torch.zeros_like(inputs["log_decay"])
    out = gated_linear_attention(**inputs, grid=GRID, scan=ALL_ORDERS, backend=backend)
    assert torch.count_nonzero(out) == 0


@pytest.mark.parametrize("gate", ["tau1", "tau16", "floor", "mixed"])
@pytest.mark.parametrize("order", ALL_ORDERS)
def test_bound_for_constant_values(order, gate, backend, dtype):
    """Catches a state that grows: with k = 1 - alpha it is an average of the values, so |out| <= scale |q|_1 max|v|."""
    inputs = inputs_for(dtype, gate)
    inputs["v"] = torch.full_like(inputs["v"], -2.5)
    out = gated_linear_attention(**inputs, grid=GRID, scan=(order,), scale=0.5, backend=backend)
    bound = 0.5 * inputs["q"].abs().sum(-1, keepdim=True) * 2.5
    assert (out.abs() <= bound * (1 + TOLERANCE[dtype])).all()
    # The bound is met: after many tokens with a small decay the average of equal values is that value.
    if gate == "floor":
        average = -2.5 * 0.5 * inputs["q"].sum(-1, keepdim=True).expand_as(out)
        last = {"row": -1, "row_reverse": 0, "column": -1, "column_reverse": 0}[order]
        assert relative_rms(out[:, last], average[:, last]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("with_k", [False, True], ids=["derived", "k"])
def test_below_the_floor_is_the_floor(with_k, backend, dtype):
    """Catches a backend without the clamp, and one whose derived key takes the gate before the clamp."""
    inputs = inputs_for(dtype, "below", with_k=with_k)
    at_floor = inputs | {"log_decay": torch.full_like(inputs["log_decay"], GATE_FLOOR)}
    kwargs = dict(grid=GRID, scan=ALL_ORDERS, backend=backend)
    assert torch.equal(gated_linear_attention(**inputs, **kwargs), gated_linear_attention(**at_floor, **kwargs))


def test_gates_above_zero_are_zero(backend, dtype):
    """Catches a state that explodes where a positive log-decay comes in."""
    inputs = inputs_for(dtype, "tau1", with_k=True)
    positive = torch.rand_like(inputs["log_decay"]) < 0.3
    kwargs = dict(grid=GRID, scan=ALL_ORDERS, backend=backend)
    above = inputs | {"log_decay": inputs["log_decay"].masked_fill(positive, 7.0)}
    zero = inputs | {"log_decay": inputs["log_decay"].masked_fill(positive, 0.0)}
    assert torch.equal(gated_linear_attention(**above, **kwargs), gated_linear_attention(**zero, **kwargs))


@pytest.mark.parametrize("with_k", [False, True], ids=["derived", "k"])
def test_gate_gradient_is_zero_where_clamped(with_k, backend, dtype):
    """Catches a straight-through clamp: a gate beyond the ends learns nothing, the ones within do."""
    inputs = inputs_for(dtype, "beyond", with_k=with_k)
    kwargs = dict(grid=GRID, scan=ALL_ORDERS, backend=backend)
    _, gradients = run(inputs, torch.randn_like(inputs["v"]), **kwargs)
    clamped = (inputs["log_decay"] < GATE_FLOOR) | (inputs["log_decay"] > 0)
    assert 0 < clamped.sum() < clamped.numel()
    assert torch.count_nonzero(gradients["log_decay"][clamped]) == 0
    assert (gradients["log_decay"][~clamped] != 0).all()


@pytest.mark.parametrize("with_k", [False, True], ids=["derived", "k"])
def test_gate_gradient_is_zero_at_the_ends_themselves(with_k, backend, dtype):
    """Catches a subgradient left to torch: its clamp passes the gradient at an end in 2.11, and none in 2.14."""
    inputs = inputs_for(dtype, "tau1", with_k=with_k)
    at_end = torch.rand_like(inputs["log_decay"]) < 0.3
    ends = torch.where(torch.rand_like(inputs["log_decay"]) < 0.5, 0.0, GATE_FLOOR).to(dtype)
    inputs["log_decay"] = torch.where(at_end, ends, inputs["log_decay"])
    assert {GATE_FLOOR, 0.0} <= set(inputs["log_decay"].flatten().tolist())
    _, gradients = run(inputs, torch.randn_like(inputs["v"]), grid=GRID, scan=ALL_ORDERS, backend=backend)
    assert torch.count_nonzero(gradients["log_decay"][at_end]) == 0
    assert (gradients["log_decay"][~at_end] != 0).all()
