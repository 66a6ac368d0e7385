"""The one door: its errors, its dtypes, and every way PyTorch has of calling it."""

import io
import re

import pytest
import torch
from gla_inputs import ALL_ORDERS, cast, make, run
from tolerances import FLOAT32, FLOAT64, for_dtype, relative_rms
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchscript import save_and_load, script

from metala_vision.kernels import GATE_FLOOR, SCAN_ORDERS, available_backends, gated_linear_attention

GRID = (7, 9)
KWARGS = dict(grid=GRID, scan=ALL_ORDERS)
BACKENDS = [name for name in available_backends() if name != "reference"]


class Attention(nn.Module):
    """A module around the registered operator, with a parameter and a strided input, as a layer has them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))
        self.scan = "row,column_reverse"

    def forward(self, q: Tensor, log_decay: Tensor, v: Tensor) -> Tensor:
        """[B, 63, H, *] -> [B, 63, H, V]."""
        return torch.ops.metala.gated_linear_attention(q * self.weight, log_decay, v, None, 7, 9, self.scan, None, None)


def positional(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return inputs["q"], inputs["log_decay"], inputs["v"]


# --- bad input: the message names the argument, what it got and what it expects


def shaped(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


BAD = {
    "q-1d": (dict(q=shaped(6)), "q: got shape (6,), expected 4 dimensions"),
    "q-3d": (dict(q=shaped(6, 2, 8)), "q: got shape (6, 2, 8), expected 4 dimensions"),
    "log_decay-3d": (dict(log_decay=shaped(6, 2, 8)), "log_decay: got shape (6, 2, 8), expected 4 dimensions"),
    "v-5d": (dict(v=shaped(1, 1, 6, 2, 4)), "v: got shape (1, 1, 6, 2, 4), expected 4 dimensions"),
    "k-2d": (dict(k=shaped(6, 8)), "k: got shape (6, 8), expected 4 dimensions"),
    "q-int": (dict(q=shaped(1, 6, 2, 8, dtype=torch.int64)), "q: got torch.int64, expected one of torch.float16"),
    "log_decay-bool": (dict(log_decay=shaped(1, 6, 2, 8, dtype=torch.bool)), "log_decay: got torch.bool, expected"),
    "v-complex": (dict(v=shaped(1, 6, 2, 4, dtype=torch.complex64)), "v: got torch.complex64, expected"),
    "k-int": (dict(k=shaped(1, 6, 2, 8, dtype=torch.int32)), "k: got torch.int32, expected one of torch.float16"),
    "q-device": (dict(q=torch.zeros(1, 6, 2, 8, device="meta")), "q: got device meta, expected cpu"),
    "log_decay-device": (
        dict(log_decay=torch.zeros(1, 6, 2, 8, device="meta")),
        "log_decay: got device meta, expected",
    ),
    "log_decay-one-channel": (
        dict(log_decay=shaped(1, 6, 2, 1)),
        "log_decay: got shape (1, 6, 2, 1), expected (1, 6, 2, 8), the shape of q",
    ),
    "k-tokens": (dict(k=shaped(1, 5, 2, 8)), "k: got shape (1, 5, 2, 8), expected (1, 6, 2, 8), the shape of q"),
    "v-batch": (dict(v=shaped(2, 6, 2, 4)), "v: got shape (2, 6, 2, 4), expected [B, N, H, V] with (1, 6, 2) from q"),
    "v-tokens": (dict(v=shaped(1, 5, 2, 4)), "v: got shape (1, 5, 2, 4), expected [B, N, H, V] with (1, 6, 2) from q"),
    "v-heads": (dict(v=shaped(1, 6, 1, 4)), "v: got shape (1, 6, 1, 4), expected [B, N, H, V] with (1, 6, 2) from q"),
    "no-tokens": (
        dict(q=shaped(1, 0, 2, 8), log_decay=shaped(1, 0, 2, 8), v=shaped(1, 0, 2, 4)),
        "q: got 0 tokens, expected at least 1",
    ),
    "no-key-channels": (
        dict(q=shaped(1, 6, 2, 0), log_decay=shaped(1, 6, 2, 0)),
        "q: got shape (1, 6, 2, 0), expected",
    ),
    "grid-product": (dict(grid=(2, 4)), "grid: got (2, 4), expected (rows, cols) with rows * cols == 6 tokens"),
    "grid-negative": (dict(grid=(-2, -3)), "grid: got (-2, -3), expected (rows, cols) with rows * cols == 6 tokens"),
    "grid-zero": (dict(grid=(0, 6)), "grid: got (0, 6), expected"),
    "grid-three": (dict(grid=(1, 2, 3)), "grid: got (1, 2, 3), expected (rows, cols)"),
    "grid-one": (dict(grid=(6,)), "grid: got (6,), expected (rows, cols)"),
    "scan-string": (dict(scan="row"), "scan: got the string 'row', expected a tuple of orders such as ('row',)"),
    "scan-empty": (dict(scan=()), f"scan: got (), expected a non-empty tuple out of {SCAN_ORDERS}, none twice"),
    "scan-twice": (dict(scan=("row", "row")), "scan: got ('row', 'row'), expected a non-empty tuple out of"),
    "scan-unknown": (
        dict(scan=("row", "diagonal")),
        "scan: got ('row', 'diagonal'), expected a non-empty tuple out of",
    ),
    "backend": (
        dict(backend="fpga"),
        "backend: got 'fpga', expected None or one of ('cpu', 'triton', 'chunked', 'reference')",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input(arguments, message):
    """Catches an error from the depth of a backend, or silence, for what the caller could be told."""
    good = dict(q=shaped(1, 6, 2, 8), log_decay=shaped(1, 6, 2, 8), v=shaped(1, 6, 2, 4))
    gated_linear_attention(**good)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        gated_linear_attention(**good | arguments)


@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_backend_that_this_machine_lacks_raises(backend):
    """Catches a silent fallback for a backend asked for by name."""
    if backend in available_backends():
        pytest.skip(f"backend {backend!r} is available here")
    with pytest.raises(ValueError, match=f"backend: got '{backend}'"):
        gated_linear_attention(*positional(make(6)), backend=backend)


def test_backends_by_name_and_by_default():
    """Catches a list of backends that is not what the operator takes, and a default that is not the first of it."""
    inputs = make(63)
    assert {"chunked", "reference"} <= set(available_backends())
    outs = {name: gated_linear_attention(**inputs, **KWARGS, backend=name) for name in available_backends()}
    automatic = gated_linear_attention(**inputs, **KWARGS)
    assert torch.equal(automatic, outs[available_backends()[0]])


def test_default_grid_scan_scale_and_key():
    """Catches defaults other than the design's: one row, forwards, K ** -0.5, k = 1 - alpha at the floor."""
    inputs = cast(make(33, gate="beyond"), torch.float64)
    k = 1 - inputs["log_decay"].clamp(GATE_FLOOR, 0).exp()
    explicit = gated_linear_attention(**inputs, k=k, grid=(1, 33), scan=("row",), scale=8**-0.5)
    assert relative_rms(gated_linear_attention(**inputs), explicit) <= FLOAT64
    assert relative_rms(gated_linear_attention(**inputs, scale=2), explicit * 2 * 8**0.5) <= FLOAT64
    assert relative_rms(gated_linear_attention(**inputs, scan=["row"], grid=[1, 33]), explicit) <= FLOAT64
    assert torch.count_nonzero(gated_linear_attention(**inputs, scale=0.0)) == 0


# --- ways of calling


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode_and_no_grad(backend):
    """Catches a path that saves for a backward that never comes, or another result without gradients."""
    inputs = {name: x.requires_grad_() for name, x in make(63).items()}
    expected = gated_linear_attention(**inputs, **KWARGS, backend=backend)
    assert expected.requires_grad
    with torch.no_grad():
        out = gated_linear_attention(**inputs, **KWARGS, backend=backend)
    assert not out.requires_grad
    assert torch.equal(out, expected)
    with torch.inference_mode():
        out = gated_linear_attention(**{name: x.clone() for name, x in inputs.items()}, **KWARGS, backend=backend)
    assert out.is_inference()
    assert torch.equal(out, expected)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1.0, 1e3], ids=["q~1", "q~1000"])
@pytest.mark.parametrize("gate", ["tau1", "tau16", "floor", "mixed"])
def test_autocast_leaves_the_sums_alone(gate, size, dtype):
    """Catches matrix products in bfloat16 of factors as large as exp(40): wrong digits, or NaN under AMP."""
    inputs = cast(make(15 * 17, 16, 32, gate=gate), dtype)
    inputs["q"] = inputs["q"] * size
    kwargs = dict(grid=(15, 17), scan=ALL_ORDERS)
    grad_out = torch.randn_like(inputs["v"])
    out, gradients = run(inputs, grad_out, torch.float64, backend="reference", **kwargs)
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        actual = gated_linear_attention(**leaves, **kwargs)
    actual.backward(grad_out)  # outside, as PyTorch asks for
    assert actual.dtype == dtype
    assert relative_rms(actual, out) <= for_dtype(dtype)
    for name, gradient in gradients.items():
        assert leaves[name].grad.dtype == dtype
        assert relative_rms(leaves[name].grad, gradient) <= for_dtype(dtype, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gate", ["tau1", "floor", "mixed", "near_zero"])
def test_huge_inputs_stay_finite(gate, backend):
    """Catches an exponential outside the range of float32 once q, k and v are large as well."""
    inputs = {name: x if name == "log_decay" else 1e6 * x for name, x in make(196, gate=gate, with_k=True).items()}
    grad_out = torch.randn_like(inputs["v"])
    out, gradients = run(inputs, grad_out, torch.float64, grid=(14, 14), scan=ALL_ORDERS, backend="reference")
    actual = run(inputs, grad_out, grid=(14, 14), scan=ALL_ORDERS, backend=backend)
    assert relative_rms(actual[0], out) <= FLOAT32
    assert all(relative_rms(actual[1][name], gradient) <= FLOAT32 for name, gradient in gradients.items())


def test_activation_checkpointing():
    """Catches a backward that depends on state of the first forward."""
    leaves = [x.requires_grad_() for x in positional(make(63))]

    def apply(q, log_decay, v):
        return gated_linear_attention(q * 2, log_decay, v, **KWARGS)

    grad_out = torch.randn_like(leaves[2])
    expected = torch.autograd.grad(apply(*leaves), leaves, grad_out)
    out = checkpoint(apply, *leaves, use_reentrant=False)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(out, leaves, grad_out), expected))


@pytest.mark.parametrize("with_k", [False, True], ids=["derived", "k"])
def test_compile_fullgraph_forward_and_backward(with_k):
    """Catches a graph break: logging, ctypes or a data-dependent branch in the operator."""
    torch.compiler.reset()
    leaves = {name: x.requires_grad_() for name, x in make(63, with_k=with_k).items()}

    def apply(**tensors):
        return gated_linear_attention(**tensors, **KWARGS) * 2

    grad_out = torch.randn_like(leaves["v"])
    expected = apply(**leaves)
    expected_gradients = torch.autograd.grad(expected, list(leaves.values()), grad_out)
    out = torch.compile(apply, fullgraph=True, backend="aot_eager")(**leaves)
    assert relative_rms(out, expected) <= FLOAT32
    for a, b in zip(torch.autograd.grad(out, list(leaves.values()), grad_out), expected_gradients):
        assert relative_rms(a, b) <= FLOAT32


def test_compile_dynamic_number_of_tokens():
    """Catches a compiled operator that bakes in the number of tokens, or whose shapes guard it into a graph break."""
    torch.compiler.reset()
    compiled = torch.compile(gated_linear_attention, fullgraph=True, backend="eager", dynamic=True)
    for rows, cols in [(7, 9), (8, 5), (15, 17)]:
        inputs, kwargs = make(rows * cols), dict(grid=(rows, cols), scan=("row", "column_reverse"))
        expected = gated_linear_attention(**inputs, **kwargs)
        assert relative_rms(compiled(**inputs, **kwargs), expected) <= FLOAT32


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch.export.load itself, up to torch 2.11
def test_export_save_and_load():
    """Catches an operator that torch.export cannot trace, or whose program does not survive a file."""
    module, inputs = Attention().eval(), positional(make(63))
    program = torch.export.export(module, inputs)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    other = positional(make(63, gate="tau16"))
    with torch.no_grad():
        assert relative_rms(loaded(*other), module(*other)) <= FLOAT32


def test_torchscript():
    """Catches a schema that TorchScript cannot call: a tuple for list, an optional without its type."""
    module, leaves = Attention(), [x.requires_grad_() for x in positional(make(63))]
    grad_out = torch.randn_like(leaves[2])
    expected = module(*leaves)
    scripted = script(module)
    for callee in (scripted, save_and_load(scripted)):
        out = callee(*leaves)
        assert relative_rms(out, expected) <= FLOAT32
        gradients = torch.autograd.grad(out, leaves, grad_out)
        for a, b in zip(gradients, torch.autograd.grad(module(*leaves), leaves, grad_out)):
            assert relative_rms(a, b) <= FLOAT32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_meta_device(dtype):
    """Catches a shape or dtype that only real data reveals: parameter counts and FLOPs are taken on meta."""
    leaves = {name: x.to("meta", dtype).requires_grad_() for name, x in make(63, 8, 24, with_k=True).items()}
    out = gated_linear_attention(**leaves, **KWARGS)
    assert (out.device.type, out.dtype, tuple(out.shape)) == ("meta", dtype, (2, 63, 2, 24))
    out.sum().backward()
    assert {x.grad.device.type for x in leaves.values()} == {"meta"}


def test_symbolic_trace():
    """Catches an operator that FX records as anything but one call: timm and torchvision trace models by FX."""
    traced = torch.fx.symbolic_trace(Attention())
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert torch.ops.metala.gated_linear_attention in targets
