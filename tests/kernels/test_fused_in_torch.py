"""What PyTorch asks of the fused operators: opcheck, pure calls, compile, export, one derivative."""

import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fused_inputs import ALL, LAYOUTS, permuted
from gla_inputs import ALL_ORDERS
from tolerances import FLOAT32, relative_rms
from torch import nn

from metala_vision.kernels import (
    add_mixer,
    add_swiglu_mlp,
    available_backends,
    conv_silu,
    conv_swiglu,
    mixer,
    swiglu,
    swiglu_mlp,
)
from metala_vision.layers import MetaLA, SwiGLU

pytestmark = pytest.mark.skipif("cpu" not in available_backends(), reason="the C kernels do not run here")


def raw_calls() -> dict[str, tuple]:
    """One call of each registered operator: its tensors, then the rest of its arguments."""
    q, g, v, k = (torch.randn(2, 63, 2, n) for n in (8, 8, 12, 8))
    projected, bias, aug, dy = torch.randn(2, 63, 144), torch.randn(48), torch.randn(24), torch.randn(2, 63, 48)
    x, weight = torch.randn(2, 63, 20), torch.randn(20, 1, 3, 3)
    mlp = (torch.randn(2, 7, 12), torch.randn(40, 12), torch.randn(10, 20))
    normed_mlp = (*mlp[:2], torch.randn(12, 20), torch.randn(12), torch.randn(12))
    half_block = (torch.randn(20), torch.randn(20), 1e-6, weight, torch.randn(60, 20), torch.randn(20), torch.randn(10))
    problem = (7, 9, ALL)
    return {
        "scan_forward": ((q, g, v), (None, *problem, 0.3)),
        "scan_forward-k": ((q, g, v, k), (*problem, 0.3)),
        "scan_backward": ((torch.randn_like(v), q, g, v), (None, *problem, 0.3)),
        "scan_backward-k": ((torch.randn_like(v), q, g, v, k), (*problem, 0.3)),
        "mixer_forward": ((projected, bias, aug), (3, *problem, 1.0, False)),
        "mixer_forward-keep": ((projected, bias, aug), (3, *problem, 0.25, True)),
        "mixer_forward-one": ((projected, bias, aug), (3, 7, 9, "row", 4.0, False)),
        "mixer_backward": ((dy, torch.randn(2, 63, 48), projected, bias, aug), (3, *problem, 0.25)),
        "conv_silu_forward": ((x, weight), (7, 9, torch.float32)),
        "conv_silu_forward-half": ((x, weight), (7, 9, torch.bfloat16)),
        "patches_forward": ((torch.randn(2, 3, 10, 9),), (4, 2)),
        "conv_silu_backward": ((torch.randn_like(x), x, weight), (7, 9)),
        "conv_swiglu_forward": ((torch.randn(2, 63, 40), weight), (7, 9)),
        "conv_swiglu_backward": ((torch.randn_like(x), torch.randn(2, 63, 40), weight), (7, 9)),
        "swiglu_forward": ((x,), ()),
        "swiglu_backward": ((torch.randn(2, 63, 10), x), ()),
        "swiglu_mlp_forward": (mlp, (None, None, 0.0, None, 0, 0)),
        "swiglu_mlp_forward-norm": (normed_mlp, (1e-6, None, 0, 0)),
        "swiglu_mlp_forward-conv": (normed_mlp, (1e-6, weight, 1, 7)),
        "add_mixer_forward": ((x,), (*half_block, torch.randn(20, 20), 2, *problem, 0.25, None)),
        "add_mixer_forward-bias": ((x,), (*half_block, torch.randn(20, 20), 2, *problem, 0.25, torch.randn(60))),
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
@pytest.mark.parametrize(
    "name",
    [
        "scan_forward-k",
        "scan_backward-k",
        "mixer_forward-keep",
        "conv_swiglu_backward",
        "swiglu_backward",
        "swiglu_mlp_forward-norm",
        "add_mixer_forward",
    ],
)
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


@pytest.mark.parametrize(
    "operator", ["mixer", "conv_silu", "conv_swiglu", "swiglu", "swiglu_mlp", "add_swiglu_mlp", "add_mixer"]
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_no_images(operator, training):
    """Catches an empty batch, the last of a data loader or a detector without boxes, that ends in an error."""
    x = torch.randn(0, 6, 24).requires_grad_(training)
    weight = torch.randn(24, 1, 3, 3).requires_grad_(training)
    mixer_weights = torch.randn(72, 24), torch.randn(24), torch.randn(12), torch.randn(24, 24)
    out, width = {
        "mixer": lambda: (mixer(x, torch.randn(8), torch.randn(4), 2, 2, 3, ALL), 8),
        "conv_silu": lambda: (conv_silu(x, weight, 2, 3), 24),
        "conv_swiglu": lambda: (conv_swiglu(x, weight[:12], 2, 3), 12),
        "swiglu": lambda: (swiglu(x), 12),
        "swiglu_mlp": lambda: (swiglu_mlp(x, torch.randn(40, 24), torch.randn(10, 20)), 10),
        "add_swiglu_mlp": lambda: (
            add_swiglu_mlp(x, torch.ones(24), torch.zeros(24), 1e-6, torch.randn(40, 24), torch.randn(24, 20)),
            24,
        ),
        "add_mixer": lambda: (
            add_mixer(x, torch.ones(24), torch.zeros(24), 1e-6, weight, *mixer_weights, 2, 2, 3, ALL),
            24,
        ),
    }[operator]()
    assert out.shape == (0, 6, width)
    if training:
        out.sum().backward()
        assert x.grad.shape == x.shape
        assert weight.grad is None or torch.count_nonzero(weight.grad) == 0


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


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch.export.load itself, up to torch 2.11
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
