"""What is timed: models by name, their softmax attention, their tokens, and whole steps."""

import pytest
import torch

from metala_vision.errors import InputError
from metala_vision.profiling.speed.steps import Cell, check_models, compiled, create, make_step, split_arguments, tokens

NANO, TINY = "metala_vit_nano", "vit_tiny_patch16_224"


def test_tokens():
    assert tokens(create(NANO, 72), 72) == 25
    assert tokens(create(TINY, 64), 64) == tokens(create(TINY, 72), 72) == 16  # what is no whole patch is left out
    assert tokens(create("xcit_nano_12_p16_224", 64), 64) == 16
    for name in ("resnet18", "swin_tiny_patch4_window7_224", "pit_ti_224", "vit_tiny_r_s16_p8_224"):
        assert tokens(create(name, 224), 224) is None  # none, fewer with every stage, or of another map than the image


def test_math_is_the_same_function():
    """And the kernel is another one: the fused one keeps no map."""
    torch.manual_seed(0)
    model = create(TINY, 64).eval()
    seen = {}
    for sdpa in ("default", "math"):
        handle = model.register_forward_hook(lambda *args: seen.update({sdpa: args[2]}))  # noqa: B023
        torch.manual_seed(1)
        with torch.profiler.profile(acc_events=True) as profile:
            make_step(model, Cell(64, 2, "float32", "infer"), sdpa=sdpa)()
        handle.remove()
        names = {event.name for event in profile.events()}
        assert ("aten::_scaled_dot_product_attention_math" in names) == (sdpa == "math")
    torch.testing.assert_close(seen["default"], seen["math"])


@pytest.mark.slow
def test_compiled_attention_is_the_one_asked_for():
    """Catches what Dynamo compiled for one kind of attention run for the other; ten models are compiled, no eight."""
    x = torch.randn(1, 3, 32, 32)
    for number in range(10):
        sdpa = ("default", "math")[number % 2]
        model = create(TINY, 32).eval()
        run = compiled(model, sdpa)
        with torch.inference_mode():
            torch.testing.assert_close(run(x), model(x), atol=1e-4, rtol=1e-4)
            with torch.profiler.profile(acc_events=True) as profile:
                run(x)
        names = {event.name for event in profile.events()}
        assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in names) == (sdpa == "default")
        assert "aten::scaled_dot_product_attention" not in names  # eager's


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_step_trains(dtype):
    model = create(NANO, 32).train()
    before = [p.detach().clone() for p in model.parameters()]
    make_step(model, Cell(32, 2, dtype, "train"))()
    assert all(p.grad is None for p in model.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_a_float16_step_trains():
    """Catches a loss scale that overflows in the first steps, where the optimizer then does nothing."""
    model = create(TINY, 32).train()
    step = make_step(model, Cell(32, 1, "float16", "train"))
    before = [p.detach().clone() for p in model.parameters()]
    step()
    assert sum(not torch.equal(a, b) for a, b in zip(before, model.parameters())) > 100


@pytest.mark.parametrize(
    ("name", "message"),
    [("deit_tinny_patch16_224", r"did you mean deit_tiny_patch16_224"), (f"{TINY}.nonsense", "nonsense")],
)
def test_wrong_names(name, message):
    with pytest.raises(InputError, match=message):
        check_models([NANO, name])


def test_models_with_arguments():
    name = "vit_tiny_patch16_224:embed_dim=128,depth=2,num_heads=2,qkv_bias=False,global_pool=avg"
    assert split_arguments(name) == (
        "vit_tiny_patch16_224",
        dict(embed_dim=128, depth=2, num_heads=2, qkv_bias=False, global_pool="avg"),
    )
    model = create(name, 64)
    assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.qkv.bias) == (128, 2, None)
    assert tokens(model, 64) == 16
    assert create("resnet18:num_classes=3", 64).fc.out_features == 3
    check_models([name])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("metala_vit_nano:depth", "--models: got 'depth' in 'metala_vit_nano:depth', expected NAME:ARGUMENT=VALUE"),
        ("metala_vit_nano:a-b=3", "--models: got 'a-b=3'"),
        ("metala_vit_nono:depth=3", "unknown model 'metala_vit_nono'.*metala_vit_nano"),
        ("metala_vit_nano:depht=3", "metala_vit_nano:depht=3: .*depht"),
        ("resnet18:depht=3", "resnet18:depht=3: .*depht"),
    ],
)
def test_models_with_wrong_arguments(name, message):
    with pytest.raises(InputError, match=message):
        create(name, 64)
