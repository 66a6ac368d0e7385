"""Models that were recorded at one size, called at another: the same numbers, or an error, and never other numbers."""

import io
from collections.abc import Callable, Iterator

import pytest
import torch
from tolerances import FLOAT32, relative_rms
from torch import Tensor, nn
from torchscript import save_and_load, script, trace
from vit_model import nano

from metala_vision.kernels import unfused
from metala_vision.layers import MIXERS

RECORDED = (2, 3, 64, 96)
# Another batch, height and width exchanged, another number of tokens, sides that are padded, a single patch.
ONE_PATCH = (1, 3, 16, 16)
OTHERS = [(5, 3, 64, 96), (2, 3, 96, 64), (2, 3, 80, 112), (1, 3, 70, 100), ONE_PATCH, (1, 3, 272, 272)]
OF_EVERY_MIXER = dict(mixer=tuple(MIXERS), depth=len(MIXERS))
MODELS = [
    {},
    dict(scan=("row", "column")),
    dict(scan="causal"),
    dict(local_conv=False),
    dict(mlp_conv=True),
    dict(pos_embed="learn", img_size=RECORDED[2:]),
    OF_EVERY_MIXER,
]
ONNX = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of this exporter


def assert_equal_at_all_sizes(other: Callable[[Tensor], Tensor], model: nn.Module, but: tuple = ()) -> None:
    for shape in {RECORDED, *OTHERS} - {but}:
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_rms(other(x), model(x)) <= FLOAT32, shape


@pytest.mark.long
@pytest.mark.parametrize("options", MODELS, ids=str)
def test_trace(options):
    """Catches the grid of the recorded image in the traced model: 6 x 4 patches scanned as 4 x 6, without an error."""
    model = nano(**options)
    traced = trace(model, torch.randn(RECORDED))
    assert_equal_at_all_sizes(traced, model)
    with torch.no_grad():
        fused = trace(model, torch.randn(RECORDED))
    assert_equal_at_all_sizes(save_and_load(fused), model)


def test_trace_of_a_function_warns():
    """Catches one grid for all sizes without a word, where torch.jit.trace cannot keep it open."""
    model = nano().requires_grad_(False)
    with pytest.warns(torch.jit.TracerWarning, match="trace the model itself"):
        trace(lambda x: model(x), torch.randn(RECORDED))


@pytest.mark.filterwarnings("ignore:The TorchScript type system")  # of GraphModule itself
@pytest.mark.parametrize("options", MODELS, ids=str)
def test_fx(options):
    """Catches a comparison of sizes that FX cannot decide while it traces, or that TorchScript does not know."""
    model = nano(**options)
    traced = torch.fx.symbolic_trace(model)
    assert_equal_at_all_sizes(traced, model)
    assert_equal_at_all_sizes(script(traced), model)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.")  # torch.export itself, in torch 2.9 to 2.11
def test_export():
    """Catches a program of one size that takes another, and a position embedding that fixes sizes left open."""
    model, x = nano(pos_embed="learn", img_size=RECORDED[2:]), torch.randn(RECORDED)
    fixed = torch.export.export(model, (x,)).module()
    for shape in OTHERS:
        with pytest.raises((AssertionError, RuntimeError), match="(Guard failed|to be equal)"):
            fixed(torch.randn(shape))
    sides = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    for other in (model, nano(**OF_EVERY_MIXER)):
        program = torch.export.export(other, (x,), dynamic_shapes=(sides,))
        assert_equal_at_all_sizes(program.module(), other, but=ONE_PATCH)  # torch.export takes a side of 1 for fixed


@pytest.fixture
def in_onnx_export(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)


def test_key_without_expm1(in_onnx_export):
    """Catches 1 - exp(g), which keeps no digits of a decay near one; ONNX has no expm1."""
    log_decay = torch.tensor([-5.0, -1.0, -1e-2, -1e-4, -1e-6, 0.0])
    assert relative_rms(unfused.key_of(log_decay), -torch.expm1(log_decay)) <= 1e-6
    assert relative_rms(unfused.key_of(log_decay[3:]), -torch.expm1(log_decay[3:])) <= 1e-6


def written_by_tracing(model: nn.Module) -> bytes:
    """By torch.onnx.export(dynamo=False), with a batch, height and width that are left open."""
    file, axes = io.BytesIO(), {"x": {0: "batch", 2: "height", 3: "width"}, "y": {0: "batch"}}
    names = dict(input_names=["x"], output_names=["y"], dynamic_axes=axes)
    torch.onnx.export(model, (torch.randn(RECORDED),), file, dynamo=False, **names)
    return file.getvalue()


@ONNX
@pytest.mark.filterwarnings("ignore:Constant folding")  # of the reversed decays of RetNet, which are constants
@pytest.mark.parametrize(
    "options", [{}, dict(scan="cross", local_conv=False, self_aug=False, mlp_conv=True), OF_EVERY_MIXER], ids=str
)
def test_onnx_by_tracing(options):
    """Catches an operator that ONNX does not know, and one that holds the recorded batch or size."""
    pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxruntime")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnx onnxruntime")
    model = nano(**dict(depth=4) | options)
    session = runtime.InferenceSession(written_by_tracing(model))

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])

    assert_equal_at_all_sizes(run, model)


@ONNX
def test_onnx_by_tracing_says_what_it_cannot():
    """Catches an error about an operator of torch's where a sentence would say what to write."""
    with pytest.raises(ValueError, match="pos_embed: got 'learn', .* write dynamo=True"):
        written_by_tracing(nano(pos_embed="learn", img_size=RECORDED[2:]))
