"""Second derivatives, the transforms of torch.func, and backends that are asked for for a while: all operators."""

import logging
import threading
from collections.abc import Callable

import pytest
import torch
from fused_inputs import ALL
from tolerances import FLOAT32, relative_rms
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

from metala_vision import kernels
from metala_vision.kernels import backends

ROWS, COLS, DIM, HEADS = 3, 5, 16, 2
TOKENS = ROWS * COLS
WIDTHS = {  # of each input's last axes
    "gated_linear_attention": dict(q=(HEADS, 4), log_decay=(HEADS, 4), v=(HEADS, 8)),
    "mixer": dict(projected=(3 * DIM,), gate_bias=(DIM,), aug_weight=(DIM // 2,)),
    "conv_silu": dict(x=(DIM,), weight=(DIM, 1, 3, 3)),
    "conv_swiglu": dict(x=(2 * DIM,), weight=(DIM, 1, 3, 3)),
    "swiglu": dict(x=(2 * DIM,)),
    "patches": dict(x=(3, 7, 10)),
    "swiglu_mlp": dict(x=(DIM,), weight_in=(2 * 24, DIM), weight_out=(DIM, 24)),
    "add_swiglu_mlp": dict(
        x=(DIM,), norm_weight=(DIM,), norm_bias=(DIM,), weight_in=(2 * 24, DIM), weight_out=(DIM, 24)
    ),
    "add_swiglu_mlp-conv": dict(
        x=(DIM,),
        norm_weight=(DIM,),
        norm_bias=(DIM,),
        weight_in=(2 * 24, DIM),
        weight_out=(DIM, 24),
        conv_weight=(24, 1, 3, 3),
    ),
    "add_mixer": dict(
        x=(DIM,),
        norm_weight=(DIM,),
        norm_bias=(DIM,),
        conv_weight=(DIM, 1, 3, 3),
        weight_in=(3 * DIM, DIM),
        gate_bias=(DIM,),
        aug_weight=(DIM // 2,),
        weight_out=(DIM, DIM),
        bias_in=(3 * DIM,),
    ),
}
OF_TOKENS = ("q", "log_decay", "v", "projected", "x")
GRID = dict(rows=ROWS, cols=COLS)
RUN: dict[str, Callable[..., Tensor]] = {
    "gated_linear_attention": lambda **x: kernels.gated_linear_attention(
        **x, grid=(ROWS, COLS), scan=tuple(ALL.split(","))
    ),
    "mixer": lambda **x: kernels.mixer(**x, **GRID, num_heads=HEADS, scan=ALL, decay_scale=0.5),
    "conv_silu": lambda **x: kernels.conv_silu(**x, **GRID),
    "conv_swiglu": lambda **x: kernels.conv_swiglu(**x, **GRID),
    "swiglu": kernels.swiglu,
    "patches": lambda x: kernels.patches(x, 4, 4),
    "swiglu_mlp": kernels.swiglu_mlp,
    "add_swiglu_mlp": lambda **x: kernels.add_swiglu_mlp(**x, eps=1e-5),
    "add_swiglu_mlp-conv": lambda **x: kernels.add_swiglu_mlp(**x, **GRID, eps=1e-5),
    "add_mixer": lambda **x: kernels.add_mixer(**x, **GRID, eps=1e-5, num_heads=HEADS, scan=ALL, decay_scale=0.5),
}


def make(name: str, batch: int = 2) -> dict[str, Tensor]:
    """Signed random inputs of an operator, with outputs near one; gates on both sides of zero, where they end."""
    lead = (batch,) if name == "patches" else (batch, TOKENS)
    inputs = {key: torch.randn(*(lead if key in OF_TOKENS else ()), *shape) for key, shape in WIDTHS[name].items()}
    return {key: x / DIM**0.5 if key in ("weight_in", "weight_out", "bias_in") else x for key, x in inputs.items()}


def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: x.double() for key, x in inputs.items()}


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    return {key: relative_rms(found[key], x) for key, x in expected.items()}


@pytest.mark.parametrize("name", RUN)
def test_second_derivatives(name):
    """Catches a gradient penalty that raises, or whose gradient is zero, half or double: against the definition."""
    inputs = make(name)
    directions = {key: torch.randn_like(x) for key, x in inputs.items()}
    weight = torch.randn_like(RUN[name](**inputs))

    def penalty(dtype: torch.dtype, asked: str | None) -> dict[str, Tensor]:
        leaves = {key: x.to(dtype).requires_grad_() for key, x in inputs.items()}
        with kernels.backend(asked):
            out = RUN[name](**leaves).tanh()
            first = torch.autograd.grad((out * weight).sum(), list(leaves.values()), create_graph=True)
            total = sum((g * directions[key]).sum() ** 2 for key, g in zip(leaves, first))
            return dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()))))

    found, expected = penalty(torch.float32, None), penalty(torch.float64, "reference")
    assert all(error <= FLOAT32 for error in errors(found, expected).values()), errors(found, expected)
    assert all(x.abs().max() > 0 for x in expected.values())


def test_second_derivative_of_one_tensor_given_twice():
    """Catches a gradient that is counted for both of its places in each of them."""
    x = torch.randn(2, TOKENS, HEADS, 8)

    def penalty(x: Tensor, asked: str | None) -> Tensor:
        x = x.detach().requires_grad_()
        out = kernels.gated_linear_attention(x, -x.abs(), x, grid=(ROWS, COLS), backend=asked)
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    assert relative_rms(penalty(x, None), penalty(x.double(), "reference")) <= FLOAT32


def test_second_derivative_in_half_precision():
    """Catches a second derivative of another dtype than the first, and one that autocast computes in bfloat16."""
    inputs = make("mixer")
    x = inputs["projected"].bfloat16()

    def penalty(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        parameters = {key: value.to(x.dtype) for key, value in inputs.items() if key != "projected"}
        with torch.autocast("cpu", torch.bfloat16):
            out = RUN["mixer"](projected=x, **parameters)
            (first,) = torch.autograd.grad(out.double().square().sum(), x, create_graph=True)
            assert first.dtype == x.dtype
            return torch.autograd.grad(first.double().square().sum(), x)[0]

    assert relative_rms(penalty(x), penalty(x.double())) <= 5e-2  # three roundings to eight bits


@pytest.mark.filterwarnings("ignore:.torch.jit")  # torch itself scripts functions when forward mode begins
@pytest.mark.parametrize("name", RUN)
def test_transforms(name, capfd):
    """Catches an operator that torch.func cannot differentiate in float32, or that vmap runs for each element."""
    inputs = make(name, batch=3)
    tangents = {key: torch.randn_like(x) for key, x in inputs.items()}
    batched = {key: 0 if key in OF_TOKENS else None for key in inputs}

    def one(values: dict[str, Tensor]) -> Tensor:  # an element of the batch
        return RUN[name](**{key: x.unsqueeze(0) if key in OF_TOKENS else x for key, x in values.items()}).squeeze(0)

    def found(values: dict[str, Tensor], t: dict[str, Tensor]) -> dict[str, Tensor]:
        out, tangent = jvp(lambda x: RUN[name](**x), (values,), (t,))
        single = {key: x[0] if key in OF_TOKENS else x for key, x in values.items()}
        first = next(iter(values))
        return {
            "vmap": vmap(one, in_dims=(batched,))(values),
            "out": out,
            "tangent": tangent,
            **{f"grad {k}": x for k, x in grad(lambda x: RUN[name](**x).tanh().sum())(values).items()},
            **{
                f"of each {k}": x
                for k, x in vmap(grad(lambda x: one(x).tanh().sum()), in_dims=(batched,))(values).items()
            },
            "jacobian": jacrev(lambda x: one({**single, first: x}).sum(-1))(single[first]),
        }

    mine, expected = found(inputs, tangents), found(double(inputs), double(tangents))
    assert all(error <= FLOAT32 for error in errors(mine, expected).values()), errors(mine, expected)
    assert relative_rms(mine["vmap"], RUN[name](**inputs)) <= FLOAT32
    assert "batching rule" not in capfd.readouterr().err


def test_batched_gradients(capfd):
    """Catches a kernel that runs in a vectorised backward pass, which knows no rule for it."""
    inputs = make("mixer")
    f = lambda x: RUN["mixer"](**{**inputs, "projected": x}).sum((1, 2))  # noqa: E731
    found = torch.autograd.functional.jacobian(f, inputs["projected"], vectorize=True)
    assert relative_rms(found, torch.autograd.functional.jacobian(f, inputs["projected"])) <= FLOAT32
    assert "batching rule" not in capfd.readouterr().err


@pytest.mark.skipif("cpu" not in kernels.available_backends(), reason="the C kernels do not run here")
def test_a_kernel_that_is_asked_for_is_refused():
    """Catches a backend by name that is exchanged for another without a word, and an error out of autograd."""
    inputs = make("mixer")

    def loss(x: Tensor) -> Tensor:
        return kernels.mixer(**{**inputs, "projected": x}, **GRID, num_heads=2, scan="row", backend="cpu").sum()

    with pytest.raises(ValueError, match=f"backend: got 'cpu', which cannot run here: {backends.TRANSFORMED}"):
        grad(loss)(inputs["projected"])


def test_the_slower_form_is_announced_once(monkeypatch, caplog):
    """Catches a training of per-sample gradients that is slow without a word, and one word for each step."""
    monkeypatch.setattr(backends, "_announced", set())
    inputs = make("swiglu")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            grad(lambda x: RUN["swiglu"](x=x).sum())(inputs["x"])
    if "cpu" in kernels.available_backends():
        assert [r.message.split(":")[0] for r in caplog.records] == [backends.TRANSFORMED]


# --- a backend for a while


class Counted:
    """The composed form, counting its calls."""

    def __init__(self, monkeypatch):
        self.calls, self.run = 0, backends.COMPOSED["chunked"]
        monkeypatch.setitem(backends.COMPOSED, "chunked", self)

    def __call__(self, *arguments):
        self.calls += 1
        return self.run(*arguments)


@pytest.mark.skipif("cpu" not in kernels.available_backends(), reason="the C kernels do not run here")
@pytest.mark.parametrize("name", ["gated_linear_attention", "mixer", "add_mixer"])
def test_a_backend_for_a_while(name, monkeypatch):
    """Catches a fused operator that does not ask, a name that stays after an error, and one that leaks to threads."""
    counted, inputs = Counted(monkeypatch), make(name)
    expected = RUN[name](**inputs)
    with kernels.backend("chunked"):
        assert relative_rms(RUN[name](**inputs), expected) <= FLOAT32
        assert counted.calls == 1
        with kernels.backend(None):
            RUN[name](**inputs)
        other = threading.Thread(target=lambda: RUN[name](**inputs))
        other.start()
        other.join()
        assert counted.calls == 1
    with pytest.raises(KeyError), kernels.backend("chunked"):
        raise KeyError
    RUN[name](**inputs)
    assert counted.calls == 1


def test_a_backend_by_argument_comes_first():
    """Catches a surrounding name that overrides the one of the call."""
    inputs = make("gated_linear_attention")
    with kernels.backend("triton"):
        kernels.gated_linear_attention(**inputs, backend="reference")
        with pytest.raises(ValueError, match="backend: got 'triton', which cannot run here: it does not run on cpu"):
            kernels.gated_linear_attention(**inputs)
    with pytest.raises(ValueError, match="backend: got 'fpga', expected None or one of"), kernels.backend("fpga"):
        pass
