"""MetaLA-ViT's architecture: the table of models, any height and width, scans, heads."""

import pytest
import timm
import torch
from timm.data import resolve_data_config
from tolerances import relative_rms
from vit_model import CLOSE, COLUMNS, ROWS, nano, tokens_of

NAMES = timm.list_models("metala*")

# --- the table of the design


@pytest.mark.parametrize(
    ("name", "dim", "depth", "heads", "parameters"),
    [
        ("metala_vit_nano", 128, 6, 2, 1_517_160),
        ("metala_vit_tiny", 192, 12, 3, 6_126_376),
        ("metala_vit_small", 384, 12, 6, 23_753_320),
        ("metala_vit_base", 768, 12, 12, 93_511_912),
        ("metala_vit_large", 1024, 24, 16, 329_338_856),
    ],
)
def test_table_of_models(name, dim, depth, heads, parameters):
    """Catches an architecture that drifts from the published table."""
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters
    block = sum(p.numel() for p in model.blocks[0].parameters())
    assert block == 13 * dim**2 + 14 * dim + 2 * (dim // 2)  # and two norms: 4 * dim
    assert (model.embed_dim, len(model.blocks), model.blocks[0].mixer.num_heads) == (dim, depth, heads)
    assert dim // 2 // heads == 32
    assert dim // heads == 64


def test_published_parameter_counts():
    """Catches a table in millions that the models left behind; figures are cut, not rounded up."""
    millions = {n: sum(p.numel() for p in timm.create_model(n, device="meta").parameters()) / 1e6 for n in NAMES}
    table = dict(nano=1.5, tiny=6.1, small=23.7)
    assert {n: int(millions[f"metala_vit_{n}"] * 10) / 10 for n in table} == table
    assert (int(millions["metala_vit_base"]), int(millions["metala_vit_large"])) == (93, 329)


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_model_runs_on_meta(name):
    """Catches an entry point that drops its arguments, and a shape that depends on the size of the model."""
    model = timm.create_model(name, num_classes=7, in_chans=4, global_pool="max", drop_path_rate=0.1, device="meta")
    assert model(torch.empty(2, 4, 97, 130, device="meta")).shape == (2, 7)
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)
    assert resolve_data_config(model=model)["input_size"][1:] == (224, 224)
    assert timm.is_model(name)
    assert not timm.is_model_pretrained(name)


def test_device_and_dtype():
    """Catches a part that is built on the default device or in the default dtype."""
    model = timm.create_model("metala_vit_nano", device="meta", dtype=torch.bfloat16)
    assert {x.device.type for x in model.state_dict().values()} == {"meta"}
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}
    assert {(name, x.dtype) for name, x in model.named_buffers()} == {("nominal_grid", torch.int64)}
    model.reset_classifier(3)
    assert (model.head.weight.device.type, model.head.weight.dtype) == ("meta", torch.bfloat16)
    out = nano().to(torch.bfloat16)(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


@pytest.mark.parametrize("argument", ["class_token", "qkv_bias", "nonsense"])
def test_unknown_argument(argument):
    """Catches a `**kwargs` that swallows a typo."""
    with pytest.raises(TypeError, match=argument):
        timm.create_model("metala_vit_nano", **{argument: True})


# --- any height and width


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (15, 64), (320, 500)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_any_size_equals_padding_with_zeros(size):
    """Catches padding on the wrong side, by other values, or rows and columns swapped on images that are not square."""
    model = nano()
    x = torch.randn(2, 3, *size)
    rows, cols = -(-size[0] // 16), -(-size[1] // 16)
    padded = torch.zeros(2, 3, rows * 16, cols * 16)
    padded[:, :, : size[0], : size[1]] = x
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, rows * cols, 128)
        assert torch.equal(features, model.forward_features(padded))
        (last,) = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        assert last.shape == (2, 128, rows, cols)
        assert torch.equal(tokens_of(last), features)


def test_tokens_are_row_major():
    """Catches a patch embedding that hands over columns first: without blocks a token sees its own patch alone."""
    model = nano(depth=0)
    x = torch.zeros(1, 3, 32, 64)
    changed = x.clone()
    changed[:, :, 16:, 32:48] = 1.0  # row 1, column 2 of a 2 x 4 grid
    moved = (model.forward_features(changed) != model.forward_features(x)).any(-1)
    assert moved.nonzero().tolist() == [[0, 6]]


def test_patch_size_of_two_sides():
    """Catches a patch taken for square: 8 rows by 16 columns."""
    model = nano(patch_size=(8, 16))
    features = model.forward_intermediates(torch.randn(1, 3, 24, 64), intermediates_only=True)
    assert features[-1].shape == (1, 128, 3, 4)


def test_one_channel():
    """Catches a stem that takes three channels whatever in_chans says, and a silent broadcast."""
    model = nano(in_chans=1)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 5)
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.randn(2, 3, 28, 28))


def test_one_image_alone_equals_itself_in_a_batch():
    """Catches images that hear each other."""
    model, x = nano(), torch.randn(4, 3, 80, 48)
    with torch.no_grad():
        together = model(x)
        for i in range(4):
            assert relative_rms(model(x[i : i + 1]), together[i : i + 1]) <= CLOSE


# --- scans


@pytest.mark.parametrize(
    ("scan", "orders"),
    [
        ("alternate", [ROWS, COLUMNS, ROWS, COLUMNS]),
        ("cross", [ROWS + COLUMNS] * 4),
        ("row", [ROWS] * 4),
        ("cycle", [["row"], ["column"], ["row_reverse"], ["column_reverse"]]),
        ("causal", [["row"]] * 4),
    ],
)
def test_scan_of_each_block(scan, orders):
    """Catches a default that scans columns first, or a scan that never reaches the blocks."""
    model = nano(depth=4, scan=scan)
    assert [list(block.mixer.scan) for block in model.blocks] == orders
    out = model(torch.randn(2, 3, 48, 80))
    assert out.shape == (2, 5)
    assert out.isfinite().all()


def test_default_scan_is_cycle():
    """Catches a default that moves without a word; with equal weights the scans differ in their result."""
    default, x = nano(), torch.randn(1, 3, 48, 80)
    outs = {}
    for scan in ("cycle", "alternate", "cross", "row"):
        model = nano(scan=scan)
        model.load_state_dict(default.state_dict())
        outs[scan] = model(x)
    assert torch.equal(outs["cycle"], default(x))
    for scan in ("alternate", "cross", "row"):
        assert relative_rms(outs[scan], outs["cycle"]) > 1e-3


@pytest.mark.parametrize("scan", ["alternate", "cross", "row", "cycle"])
def test_every_patch_hears_every_other(scan):
    """Catches a direction that is left out: of tokens far from each other no convolution tells."""
    model, x = nano(depth=4, scan=scan).double(), torch.randn(1, 3, 16 * 16, 16 * 16).double()
    for row, column in ((0, 0), (0, 15), (15, 0), (15, 15)):
        changed = x.clone()
        changed[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 1.0
        with torch.no_grad():
            assert (model.forward_features(x) - model.forward_features(changed)).abs().amax(2).min() > 1e-10


@pytest.mark.parametrize("mlp_conv", [False, True], ids=["", "mlp_conv"])
@pytest.mark.parametrize("patch", [16, 19, 32, 55], ids=lambda p: f"patch{p}")
def test_causal_model_hears_no_later_patch(patch, mlp_conv):
    """Catches a leak through any layer: tokens before a changed patch, row-major, keep their values."""
    model = nano(scan="causal", mlp_conv=mlp_conv)
    x = torch.randn(1, 3, 7 * 16, 8 * 16)
    changed = x.clone()
    row, column = divmod(patch, 8)
    changed[:, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] += 1.0
    with torch.no_grad():
        if patch % 16 == 0:  # at the start of a chunk not even the rounding of earlier tokens may change
            assert torch.equal(model.forward_features(x)[:, :patch], model.forward_features(changed)[:, :patch])
        before, after = (model.double().forward_features(image.double()) for image in (x, changed))
    assert relative_rms(after[:, :patch], before[:, :patch]) <= 1e-10
    assert (before[:, patch:] - after[:, patch:]).abs().amax((0, 2)).min() > 1e-10  # and all later ones hear it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(scan="zigzag"),
            r"scan: got 'zigzag', expected one of \('cycle', 'alternate', 'cross', 'row', 'causal'\)",
        ),
        (dict(global_pool="token"), r"global_pool: got 'token', expected one of \('', 'avg', 'max', 'avgmax'\)"),
        (dict(global_pool="map"), "global_pool: got 'map'"),
        (dict(num_heads=5), "num_heads: got 5 with dim 128"),
    ],
)
def test_bad_arguments(arguments, message):
    """Catches a model that is built and fails at its first image."""
    with pytest.raises(ValueError, match=f"^{message}"):
        timm.create_model("metala_vit_nano", **arguments)


# --- heads


@pytest.mark.parametrize(
    ("pool", "reduce"),
    [
        ("avg", lambda t: t.sum(1) / t.shape[1]),
        ("max", lambda t: t.amax(1)),
        ("avgmax", lambda t: (t.mean(1) + t.amax(1)) / 2),
        ("", lambda t: t),
    ],
    ids=["avg", "max", "avgmax", "none"],
)
def test_global_pool(pool, reduce):
    """Catches a pooling that leaves out a token or pools before the norm."""
    model, x = nano(global_pool=pool), torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        tokens = model.forward_features(x)
        pooled = model.forward_head(tokens, pre_logits=True)
        assert relative_rms(pooled, reduce(tokens)) <= CLOSE
        logits = pooled @ model.head.weight.t() + model.head.bias
        assert relative_rms(model(x), logits) <= CLOSE
        assert torch.equal(model.forward_head(tokens), model(x))


def test_no_classes_is_no_head():
    """Catches `num_classes=0` that still projects, timm's way to a feature extractor."""
    model, x = nano(num_classes=0), torch.randn(2, 3, 32, 32)
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert model(x).shape == (2, model.num_features) == (2, model.head_hidden_size)


def test_reset_classifier():
    """Catches a new head of the wrong width or mode, or a pooling that does not change."""
    model, x = nano(), torch.randn(2, 3, 32, 48)
    model.reset_classifier(11)
    assert model(x).shape == (2, 11)
    assert model.num_classes == 11
    assert model.get_classifier() is model.head
    assert not model.head.training
    assert torch.count_nonzero(model.head.bias) == 0
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    model.reset_classifier(0, global_pool="")
    assert model(x).shape == (2, 6, 128)
    model.reset_classifier(3, "max")
    assert model(x).shape == (2, 3)
    assert model.global_pool == "max"


def test_failed_reset_classifier_changes_nothing():
    """Catches a model left with one number of classes in its head and another in `num_classes`."""
    model = nano()
    with pytest.raises(ValueError, match="^global_pool: got 'token'"):
        model.reset_classifier(11, global_pool="token")
    assert (model.num_classes, model.head.out_features, model.global_pool) == (5, 5, "avg")
