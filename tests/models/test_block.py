"""A block in one operator for each of its halves: what must not be passed over for it."""

import pytest
import timm
import torch
from tolerances import FLOAT32, relative_rms
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from metala_vision.layers import MetaLABlock


class Adapted(nn.Linear):
    """A linear layer with something added to its output, as an adapter has."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C'], shifted."""
        return super().forward(x) + 1


WATCHED = ["norm1", "mixer", "mixer.conv", "mixer.in_proj", "mixer.out_proj", "mixer.proj_drop", "drop_path1"]
WATCHED += ["norm2", "mlp", "mlp.fc1", "mlp.drop", "drop_path2"]


@pytest.mark.parametrize("name", WATCHED)
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_block_calls_the_modules_that_somebody_watches(name, training):
    """Catches a hook on a module that the fused operator passes over."""
    block, calls = MetaLABlock(16, 2).train(training), []
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 12, 16)
    with torch.set_grad_enabled(training):
        before = block(x, (3, 4))
        block.get_submodule(name).register_forward_hook(lambda *arguments: calls.append(1))
        after = block(x, (3, 4))
    assert calls == [1]
    assert relative_rms(after, before) <= FLOAT32


@pytest.mark.parametrize("options", [{"proj_drop": 0.9}, {"drop_path": 0.9}], ids=str)
def test_block_drops_in_training_alone(options):
    """Catches a dropout that the fused operator leaves out of training, or that is on in inference."""
    block = MetaLABlock(16, 2, **options)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(8, 12, 16)
    with torch.no_grad():
        dropped = {relative_rms(block.train()(x, (3, 4)), block(x, (3, 4))) for _ in range(4)}
        assert max(dropped) > 0.05
        plain = MetaLABlock(16, 2).eval()
        plain.load_state_dict(block.state_dict())
        assert torch.equal(block.eval()(x, (3, 4)), plain(x, (3, 4)))


@pytest.mark.parametrize("change", ["rms_norm", "no_bias", "adapter", "causal"])
@pytest.mark.parametrize("half", [1, 2])
def test_block_with_other_modules(half, change):
    """Catches a fused operator that takes any module for the one that it knows."""
    block = MetaLABlock(
        16, 2, scan=("row",) if change == "causal" else ("row", "row_reverse"), causal=change == "causal"
    )
    block, x = block.eval(), torch.randn(2, 12, 16)
    if change == "adapter" and half == 1:
        block.mixer.out_proj = Adapted(16, 16, bias=False)
    elif change == "adapter":
        block.mlp.fc2 = Adapted(48, 16, bias=False)
    elif change != "causal":
        setattr(block, f"norm{half}", nn.RMSNorm(16) if change == "rms_norm" else nn.LayerNorm(16, bias=False))
    with torch.no_grad():
        y = x + block.mixer(block.norm1(x), (3, 4))
        assert relative_rms(block(x, (3, 4)), y + block.mlp(block.norm2(y))) <= FLOAT32


@pytest.mark.parametrize("name", WATCHED)
def test_block_calls_every_module_where_all_are_watched(name):
    """Catches a profiler's hook on all modules that sees none of those in a fused operator."""
    block, calls = MetaLABlock(16, 2).eval(), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *rest: calls.append(module))
    try:
        with torch.no_grad():
            block(torch.randn(2, 12, 16), (3, 4))
    finally:
        handle.remove()
    assert any(module is block.get_submodule(name) for module in calls)


def test_block_with_a_norm_over_tokens():
    """Catches a norm over more axes than channels, taken for one over the channels."""
    block, x = MetaLABlock(16, 2).eval(), torch.randn(2, 12, 16)
    block.norm1 = nn.LayerNorm((12, 16))
    nn.init.normal_(block.norm1.weight)
    with torch.no_grad():
        y = x + block.mixer(block.norm1(x), (3, 4))
        assert relative_rms(block(x, (3, 4)), y + block.mlp(block.norm2(y))) <= FLOAT32


class Halved(torch.Tensor):
    """A weight of another kind: it is worth half of what it stores, wherever it is multiplied."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if func is nn.functional.linear:
                return 0.5 * func(args[0], args[1].as_subclass(torch.Tensor))
            return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["mixer.in_proj", "mixer.out_proj", "mlp.fc1", "mlp.fc2"])
def test_block_with_a_weight_of_another_kind(name):
    """Catches the stored numbers of a quantised weight, taken for the weight."""
    block, x = MetaLABlock(16, 2).eval(), torch.randn(2, 12, 16)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    linear = block.get_submodule(name)
    with torch.no_grad():
        before = block(x, (3, 4))
        stored = linear.weight.detach()
        del linear.weight
        linear.weight = (2 * stored).as_subclass(Halved)
        assert relative_rms(block(x, (3, 4)), before) <= FLOAT32


def test_block_by_its_modules_in_fx():
    """Catches nodes that a user of feature extraction names and does not find, since an operator took their place."""
    model = timm.create_model("metala_vit_nano", depth=2, num_classes=0).eval()
    x = torch.randn(1, 3, 32, 48)
    names = ["blocks.0.mixer", "blocks.1.norm2"]
    extracted = create_feature_extractor(model, names)(x)
    assert list(extracted) == names
    with torch.no_grad():
        tokens = model.patch_embed(x).flatten(1, 2)
        expected = model.blocks[0].mixer(model.blocks[0].norm1(tokens), (2, 3))
    assert relative_rms(extracted["blocks.0.mixer"], expected) <= FLOAT32
