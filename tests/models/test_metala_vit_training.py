"""MetaLA-ViT in training and in compilers: gradients, optimisers, initial weights, export."""

import warnings

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import ModelEmaV3
from tolerances import relative_rms
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchscript import script, trace
from vit_model import CLOSE, nano

from metala_vision import MetaLAViT
from metala_vision.kernels import flops

# --- training


def gradients(model: MetaLAViT, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_every_parameter_learns():
    """Catches a parameter outside the graph, or cut off by zeros elsewhere, from the first step on."""
    model = timm.create_model("metala_vit_nano", num_classes=5)
    F.cross_entropy(model(torch.randn(2, 3, 48, 80)), torch.tensor([0, 3])).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, name


def test_gradient_checkpointing():
    """Catches recomputation that yields other gradients, or a switch that does nothing."""
    model, x = nano(), torch.randn(2, 3, 48, 80)
    plain = gradients(model, x)
    calls = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing()
    recomputed = gradients(model, x)
    assert len(calls) == 2  # forward, and again in the backward pass
    assert all(torch.equal(recomputed[name], gradient) for name, gradient in plain.items())
    model.set_grad_checkpointing(False)
    gradients(model, x)
    assert len(calls) == 3
    model.set_grad_checkpointing()
    _, maps = model.forward_intermediates(x, indices=1)
    maps[0].sum().backward()
    assert len(calls) == 5


def test_repeats_bit_for_bit():
    """Catches a result that changes from run to run: an interrupted training must resume to the same weights."""
    model, x = nano(drop_path_rate=0.5, proj_drop_rate=0.1, drop_rate=0.1).train(), torch.randn(4, 3, 48, 80)
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        runs.append(gradients(model, x))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    torch.manual_seed(7)
    first = timm.create_model("metala_vit_nano").state_dict()
    torch.manual_seed(7)
    second = timm.create_model("metala_vit_nano").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_drop_rates_arrive():
    """Catches stochastic depth or dropout that is set and never used, or used at inference."""
    model = timm.create_model("metala_vit_nano", drop_path_rate=0.3, drop_rate=0.2, proj_drop_rate=0.1)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.06, 0.12, 0.18, 0.24, 0.3])
    assert model.head_drop.p == 0.2
    assert {block.mixer.proj_drop.p for block in model.blocks} == {block.mlp.drop.p for block in model.blocks} == {0.1}
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_bfloat16_training_steps():
    """Catches NaN under AMP, the rivals' classic, and a loss that does not move."""
    model = timm.create_model("metala_vit_nano", depth=2, num_classes=4)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    x, target = torch.randn(4, 3, 64, 64), torch.arange(4)
    losses = []
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert all(p.isfinite().all() for p in model.parameters())
    assert losses[2] < losses[1] < losses[0]


def test_layer_decay():
    """Catches a group matcher that puts parameters into the wrong layer: later layers learn faster."""
    model = nano(depth=3)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert scale.keys() == dict(model.named_parameters()).keys()
    for name, value in scale.items():
        layer = {"patch_embed": 0, "norm": 3, "head": 4}.get(name.split(".")[0])  # norm goes with the last block
        if layer is None:
            layer = 1 + int(name.split(".")[1])
        assert value == 0.5 ** (4 - layer), name
    assert {name for name in decay if decay[name] == 0} == {n for n, p in model.named_parameters() if p.ndim <= 1}
    assert decay["blocks.0.mixer.aug_weight"] == decay["blocks.0.mixer.gate_bias"] == 0
    assert decay["blocks.0.mixer.conv.weight"] == 0.05
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, layer_decay=0.5)
    assert {group["lr_scale"] for group in optimizer.param_groups} == {0.5**i for i in range(5)}


def test_moving_average():
    """Catches a model that cannot be copied, or state that an average of parameters misses."""
    model = nano()
    ema = ModelEmaV3(model, decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    ema.update(model)
    for name, p in ema.module.named_parameters():
        assert relative_rms(p, before[name] + 0.5) <= CLOSE, name


def test_initial_weights():
    """Catches a layer that keeps PyTorch's default where the design says 0.02, zero, or a spread."""
    model = timm.create_model("metala_vit_nano")
    for name, p in model.named_parameters():
        if name.endswith("decay_bias"):
            assert (p.min(), p.max()) == (-2, 4), name
        elif name.endswith(("bias", "aug_weight")) and "patch_embed" not in name:
            assert torch.count_nonzero(p) == 0, name
        elif "norm" in name:
            assert (p == 1).all(), name
        elif "proj" in name and "patch_embed" not in name or ".fc" in name or name == "head.weight":
            assert p.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            assert 0 < p.abs().max() < 1, name


def test_init_weights_after_to_empty():
    """Catches a parameter that `init_weights` leaves as it finds it: meta construction would train on garbage."""
    model = timm.create_model("metala_vit_nano", device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for x in model.state_dict().values():
            x.fill_(float("nan") if x.is_floating_point() else 7)
    usual = timm.create_model("metala_vit_nano")
    for m in (model, usual):
        torch.manual_seed(3)
        m.init_weights()
    for name, x in usual.state_dict().items():
        assert torch.equal(model.state_dict()[name], x), name


def test_a_grid_that_is_copied_into_the_buffer_counts():
    """Catches ranks that scale their decays by another grid than that of the weights they were sent."""
    big, small = (timm.create_model("metala_vit_nano", img_size=size, num_classes=2).eval() for size in (128, 64))
    with torch.no_grad():
        for mine, theirs in zip(big.state_dict().values(), small.state_dict().values()):
            mine.copy_(theirs)  # as DDP, FSDP and moving averages do
    x = torch.randn(1, 3, 128, 128)
    assert torch.equal(big.eval()(x), small(x))
    assert big.train().blocks[0].mixer.nominal_grid == (4, 4)


def test_a_scripted_model_changes_its_mode():
    """Catches a method of Python on a scripted module, where it has no super class."""
    scripted = script(timm.create_model("metala_vit_nano", depth=1).eval())
    assert not scripted.eval().training
    assert scripted.train().training


@pytest.mark.parametrize("grad", [True, False])
def test_images_of_other_channels(grad):
    """Catches a message about matrices for a picture that is grey."""
    model = timm.create_model("metala_vit_nano", depth=1).eval()
    with torch.set_grad_enabled(grad):
        for shape in ((2, 1, 32, 32), (2, 5, 32, 32)):
            with pytest.raises(RuntimeError, match=rf"expected input.* to have 3 channels, but got {shape[1]} "):
                model(torch.randn(shape))


# --- compilers


def test_compile_fullgraph():
    """Catches a graph break anywhere in the model, forwards or backwards."""
    torch.compiler.reset()
    model, x = nano(), torch.randn(2, 3, 40, 72)
    plain = gradients(model, x)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    out = compiled(x)
    assert relative_rms(out, expected) <= CLOSE
    model.zero_grad()
    out.square().mean().backward()
    assert all(relative_rms(p.grad, plain[name]) <= CLOSE for name, p in model.named_parameters())


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch.export.load itself, up to torch 2.11
def test_export(tmp_path):
    """Catches a model that torch.export cannot trace, or whose program does not survive a file."""
    model, x = nano(), torch.randn(2, 3, 40, 72)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    other = torch.randn(2, 3, 40, 72)
    with torch.no_grad():
        assert relative_rms(loaded(other), model(other)) <= CLOSE


def test_torchscript():
    """Catches Python that TorchScript does not know, as timm's scripted users would."""
    model, x = nano(), torch.randn(2, 3, 40, 72)
    scripted = script(model)
    with torch.no_grad():
        assert relative_rms(scripted(x), model(x)) <= CLOSE
        assert scripted(torch.randn(1, 3, 17, 33)).shape == (1, 5)


def test_tracers():
    """Catches an operator that takes a list of strings, which torch.jit.trace refuses: fvcore is built on it."""
    model = timm.create_model("metala_vit_nano", num_classes=7).eval()
    x = torch.randn(1, 3, 48, 64)
    with torch.inference_mode():
        traced = trace(model, x)
        torch.testing.assert_close(traced(x), model(x))


def test_fvcore_counts_every_operator():
    """Catches an operator without a formula, which fvcore counts as nothing."""
    pytest.importorskip("fvcore", reason="fvcore is not installed: pip install fvcore")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".torch.jit")  # fvcore scripts a function while it is imported
        from fvcore.nn import FlopCountAnalysis
    model = timm.create_model("metala_vit_nano", num_classes=7).eval()
    x = torch.randn(1, 3, 48, 64)
    count = FlopCountAnalysis(model, x).set_op_handle(**flops.fvcore_handles()).unsupported_ops_warnings(False)
    assert count.total() == nano_macs(rows=3, cols=4, classes=7)
    assert not [name for name in count.unsupported_ops() if name.startswith("metala::")]


def test_flop_counters_agree_with_the_hand_count():
    """Catches an operator that a counter leaves out, and a formula that only one of them has."""
    model = timm.create_model("metala_vit_nano", num_classes=7).eval()
    x = torch.randn(2, 3, 48, 64)
    for context in (torch.inference_mode(), torch.enable_grad()):
        with context, FlopCounterMode(display=False) as counter:
            model(x)
        assert counter.get_total_flops() == 2 * 2 * nano_macs(rows=3, cols=4, classes=7, norms=False)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    assert 2.7 <= counter.get_total_flops() / (4 * nano_macs(rows=3, cols=4, classes=7, norms=False)) <= 3.3


def nano_macs(rows: int, cols: int, classes: int, norms: bool = True) -> int:
    """Multiply-accumulates of metala_vit_nano on one image, written out: width 128, depth 6, 2 heads, K 32, V 64."""
    dim, heads, key, value = 128, 2, 32, 64
    products = 3 * dim * dim + dim * dim + 9 * dim * dim  # fused projection, output projection, SwiGLU
    scan = heads * (3 * key * value + key + value)  # one order: decay, update, readout; the own term
    augmentation = heads * (2 * key + value)
    block = products + scan + augmentation + 9 * dim
    total = rows * cols * (3 * 16 * 16 * dim + 6 * block) + dim * classes
    return total + rows * cols * 13 * 5 * dim if norms else total  # fvcore counts 5 per element of a LayerNorm


def test_an_empty_batch_has_empty_logits():
    """As timm's ViT: what is left of a batch when every image was dropped."""
    assert timm.create_model("metala_vit_nano", num_classes=7)(torch.randn(0, 3, 64, 64)).shape == (0, 7)
