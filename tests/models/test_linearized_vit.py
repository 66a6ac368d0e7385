"""A pretrained ViT with linear attention: what stays the teacher's, any size, and timm's surface."""

import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from tolerances import FLOAT32, relative_rms
from torch.nn import functional as F

from metala_vision.layers.linearized import FORMS
from metala_vision.models.linearized_vit import LinearizedViT
from metala_vision.profiling.macs.count import count

# A class token and registers, a position for the patches alone, LayerScale, norms of queries and keys, SwiGLU.
TEACHERS = {
    "deit": dict(),
    "registers": dict(reg_tokens=4, no_embed_class=True, init_values=1e-1),
    "no prefix": dict(class_token=False, global_pool="avg", qk_norm=True),
    "no positions": dict(pos_embed="none", pre_norm=True, fc_norm=True, qkv_bias=False),
    "map": dict(class_token=False, global_pool="map"),
}


def teacher_of(kind: str = "deit", **arguments) -> VisionTransformer:
    torch.manual_seed(0)
    settings = dict(embed_dim=24, num_heads=3, depth=3, img_size=32, patch_size=8, num_classes=5)
    model = VisionTransformer(**{**settings, **TEACHERS[kind], **arguments}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("kind", TEACHERS)
def test_with_every_block_kept_it_is_the_teacher(kind):
    """Catches anything on the way of the tokens that is not the teacher's, at its own size and at another."""
    teacher = teacher_of(kind)
    model = LinearizedViT.of(teacher, keep_softmax=(0, 1, 2)).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), teacher(x))
    assert torch.equal(model.forward_features(x), teacher.forward_features(x))
    other = VisionTransformer.__new__(VisionTransformer)
    other.__dict__ = copy.deepcopy(teacher).__dict__
    other.set_input_size(img_size=(48, 24))
    larger = torch.randn(1, 3, 48, 24)
    assert relative_rms(model(larger), other(larger)) <= FLOAT32


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("mixer", FORMS)
def test_every_parameter_learns(mixer, kind):
    """And the teacher, whose weights were copied, keeps its own."""
    teacher = teacher_of(kind)
    saved = copy.deepcopy(teacher.state_dict())
    model = LinearizedViT.of(teacher, mixer=mixer, states=6)
    assert set(saved) <= set(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(torch.randn(2, 3, 40, 28)), torch.tensor([0, 3])).backward()
    # The patches of the last block are behind a class token; position 0 is a class token's, where it has one
    unread = ("blocks.2.attn.form", "blocks.2.attn.local") if model.global_pool == "token" else ()
    for name, p in model.named_parameters():
        assert p.grad.isfinite().all(), name
        assert (p.grad.abs().max() > 0) != name.startswith(unread or "none"), name
    optimizer.step()
    assert all(torch.equal(value, saved[name]) for name, value in teacher.state_dict().items())


def test_blocks_that_are_kept():
    model = LinearizedViT.of(teacher_of(), keep_softmax=(-1, 0))
    assert model.keep_softmax == (0, 2)
    assert [block.is_linear for block in model.blocks] == [False, True, False]
    assert type(model.blocks[2].attn) is timm.layers.Attention


@pytest.mark.parametrize("mixer", FORMS)
@pytest.mark.parametrize("size", [(32, 32), (8, 8), (30, 50), (64, 24)], ids=str)
def test_any_size(mixer, size):
    """Sides that are no multiple of the patches are padded; the batch does not matter."""
    model = LinearizedViT.of(teacher_of("registers"), mixer=mixer, states=6).eval()
    x = torch.randn(2, 3, *size)
    rows, cols = (-(-side // 8) for side in size)
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 5 + rows * cols, 24)
    assert relative_rms(model(x)[1:], model(x[1:])) <= FLOAT32
    final, maps = model.forward_intermediates(x, norm=True)
    assert torch.equal(final, tokens)
    assert [tuple(m.shape) for m in maps] == [(2, 24, rows, cols)] * 3
    assert torch.equal(maps[-1].flatten(2).transpose(1, 2), tokens[:, 5:])


def test_intermediates_are_those_of_timm():
    """Of every form that timm's own method has, for a model whose blocks are all kept."""
    teacher = teacher_of("registers")
    model = LinearizedViT.of(teacher, keep_softmax=(0, 1, 2)).eval()
    x = torch.randn(2, 3, 32, 32)
    for arguments in (
        dict(),
        dict(indices=1, intermediates_only=True, stop_early=True),
        dict(indices=[0, 2], return_prefix_tokens=True, norm=True),
        dict(output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True),
        dict(output_dict=True, return_prefix_tokens=True),
        dict(output_dict=True, intermediates_only=True),
    ):
        found, wanted = (m.forward_intermediates(x, **arguments) for m in (model, teacher))
        assert str(torch.utils._pytree.tree_structure(found)) == str(torch.utils._pytree.tree_structure(wanted))
        for one, other in zip(torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(wanted)):
            assert torch.equal(one, other)


def test_the_grid_of_the_training_travels(tmp_path):
    """With the weights, and to the forms; `decay_scale="none"` and `set_input_size` are as for MetaLA-ViT."""
    model = LinearizedViT.of(teacher_of(), states=6).eval()
    assert {block.attn.form.nominal_grid for block in model.blocks} == {(4, 4)}
    larger = torch.randn(1, 3, 64, 48)
    expected = model(larger)
    other = LinearizedViT.of(teacher_of(img_size=64), states=6).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(model.state_dict(), other)
    other.load_state_dict(state)
    assert {block.attn.form.nominal_grid for block in other.blocks} == {(4, 4)}
    plain = LinearizedViT.of(teacher_of(), states=6, decay_scale="none").eval()
    plain.load_state_dict(model.state_dict())
    assert relative_rms(plain(larger), expected) > 1e-6
    assert {block.attn.form.nominal_grid for block in plain.blocks} == {(0, 0)}
    model.set_input_size(img_size=(64, 48))
    assert model.nominal_grid.tolist() == [8, 6]
    assert model.blocks[0].attn.grid == (8, 6)


def test_sides_that_are_no_whole_patches():
    """Catches a grid of the training that no image of the training has: they are padded."""
    model = LinearizedViT.of(teacher_of(img_size=(36, 44)), states=6).eval()
    assert model.nominal_grid.tolist() == [5, 6]
    assert {block.attn.form.nominal_grid for block in model.blocks} == {(5, 6)}
    assert {block.attn.grid for block in model.blocks} == {model._embed(torch.randn(1, 3, 36, 44))[1]}
    model.set_input_size(img_size=(44, 36))
    assert model.nominal_grid.tolist() == [6, 5]


@pytest.mark.parametrize("mixer", FORMS)
def test_init_weights_after_to_empty(mixer):
    """Catches a grid of the training, or a weight, that is left as the memory was."""
    arguments = dict(teacher="vit_tiny_patch16_224", mixer=mixer, states=4, img_size=32, depth=1)
    model = timm.create_model("linearized_vit", **arguments).to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for x in model.state_dict().values():
            x.fill_(float("nan") if x.is_floating_point() else 7)
    model.init_weights()
    assert model.nominal_grid.tolist() == [2, 2]
    assert not model.blocks[0].attn.local.weight.any()
    assert all(x.isfinite().all() for x in model.state_dict().values())


def test_by_its_name(tmp_path):
    """timm makes it, saves it, and loads it again with the teacher's preprocessing."""
    arguments = dict(teacher="vit_tiny_patch16_224", mixer="classes", states=4, keep_softmax=(3,))
    model = timm.create_model("linearized_vit", num_classes=3, img_size=64, **arguments).eval()
    assert model.pretrained_cfg["mean"] == timm.get_pretrained_cfg("vit_tiny_patch16_224").mean
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 64, 80)
    assert torch.equal(loaded(x), model(x))
    assert loaded.keep_softmax == (3,)
    features = timm.create_model("linearized_vit", features_only=True, out_indices=(-2, -1), **arguments)
    assert [tuple(m.shape) for m in features(torch.randn(1, 3, 224, 160))] == [(1, 192, 14, 10)] * 2


@pytest.mark.parametrize("mixer", FORMS)
def test_compiled_and_exported(mixer):
    model = LinearizedViT.of(teacher_of("registers"), mixer=mixer, states=6).eval()
    x = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        expected = model(x)
        assert relative_rms(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected) <= FLOAT32
        assert relative_rms(torch.export.export(model, (x,)).module()(x), expected) <= FLOAT32
    model.set_grad_checkpointing()
    assert relative_rms(model.train()(x), expected) <= FLOAT32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mixer="gla"), "mixer: got 'gla', expected one of"),
        (dict(keep_softmax=(3,)), r"keep_softmax: got \(3,\), expected indices of 3 blocks"),
        (dict(keep_softmax=(0, -3)), r"keep_softmax: got \(0, -3\), .* none twice"),
        (dict(decay_scale="off"), "decay_scale: got 'off'"),
        (dict(scan="diagonal"), "scan: got 'diagonal'"),
        (dict(states=0), "states: got 0, expected 1 or more"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearizedViT.of(teacher_of(), **arguments)


def test_teachers_that_do_not_fit():
    with pytest.raises(ValueError, match="teacher: got a Eva, expected a VisionTransformer"):
        LinearizedViT.of(timm.create_model("eva02_tiny_patch14_224", depth=1))
    with pytest.raises(ValueError, match="patch_drop_rate: got one, expected 0"):
        LinearizedViT.of(teacher_of(patch_drop_rate=0.5))
    with pytest.raises(ValueError, match="teacher: got 'vit_nonesuch', which is no model of timm"):
        timm.create_model("linearized_vit", teacher="vit_nonesuch")
    with pytest.raises(ValueError, match="attn_mask, is_causal"):
        LinearizedViT.of(teacher_of())(torch.randn(1, 3, 32, 32), is_causal=True)


@pytest.mark.parametrize("mixer", FORMS)
def test_macs_by_hand(mixer):
    """Per block and head, N patches, P tokens before them, D channels, M states; and the rest as any ViT has it."""
    cost = count(timm.create_model("linearized_vit", teacher="vit_tiny_patch16_224", mixer=mixer, states=32), 224)
    n, p, d, m, dim = 196, 1, 64, 32, 192
    form = {
        "classes": 3 * n * d * m + 2 * n * (m + p) * d,  # shares, two means, and attention to the classes
        "kernel": 4 * n * d * m + 2 * n * p * d,  # shares, sums of values, features of queries, their product
        "metala": 2 * n * d * m
        + 2 * n * p * d
        + n * 2 * d,  # shares, queries, the mass of the patches; beside the scan
    }[mixer]
    blocks = 12 * (3 * (form + 2 * p * (n + p) * d) + 12 * (n + p) * dim * dim + 9 * n * dim)
    scan = cost.operators.get("gated_linear_attention", 0)
    assert (scan > 0) == (mixer == "metala")
    assert cost.products == cost.torch == blocks + scan + n * dim * 768 + 1000 * dim
