"""Counts of whole models: three ways that must agree, parts that must add up, and nothing left out in silence."""

import json
from pathlib import Path

import pytest
import timm
import torch
from tool_process import run_tool
from torch import nn

from metala_vision.errors import InputError
from metala_vision.kernels.flops import chunkwise_scan_macs, fvcore_handles, scan_macs
from metala_vision.layers import MIXERS
from metala_vision.profiling.macs.count import count
from metala_vision.profiling.macs.report import count_models, parse_size, render, save

ROOT = Path(__file__).resolve().parents[2]

MODELS = [
    *(("metala_vit_" + name, size) for name in ("nano", "tiny", "small") for size in (224, (72, 136))),
    ("metala_vit_base", (48, 64)),
    pytest.param("metala_vit_large", (32, 48), marks=pytest.mark.long),
    *((name, 224) for name in ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit_small_patch16_224")),
    ("deit_base_patch16_224", (96, 64)),
    ("xcit_tiny_12_p16_224", 224),
    ("xcit_tiny_12_p16_224", (96, 160)),
    ("xcit_small_12_p8_224", 64),
    ("efficientvit_b1", 224),
    ("efficientvit_b2", (150, 215)),
]


def create(name: str, size) -> nn.Module:
    sized = {} if name.startswith("efficientvit") else {"img_size": size}
    return timm.create_model(name, **sized).eval()


@pytest.mark.parametrize(("name", "size"), MODELS)
def test_three_counts_agree(name, size):
    """Catches an operator that a counter does not see, and a formula or a handle that is wrong."""
    cost = count(create(name, size), size)
    assert cost.products == cost.torch == cost.formula.products
    assert cost.macs == cost.formula.macs == sum(cost.operators.values())
    assert cost.mixer + cost.channel_mixer + cost.rest == cost.macs
    assert min(cost.mixer, cost.channel_mixer, cost.rest, cost.activations) > 0
    assert next(module for module in cost.modules if not module.name).macs == cost.macs


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        *({"scan": scan} for scan in ("alternate", "cross", "row", "cycle", "causal")),
        {"local_conv": False},
        {"mlp_conv": True},
        {"pos_embed": "learn"},
        *({"mixer": mixer} for mixer in MIXERS),
        {"mixer": ("metala", "softmax", "ssd"), "scan": "cross"},
        {"mixer": ("zeros", "gla", "normalized"), "scan": "causal"},
    ],
    ids=str,
)
def test_options_of_our_models(options):
    """Catches a formula that holds for the default alone."""
    cost = count(timm.create_model("metala_vit_nano", num_classes=7, **options), 64)
    assert cost.products == cost.torch == cost.formula.products
    assert cost.macs == cost.formula.macs


# GMACs in timm's benchmark tables, and GFLOPs in the papers that compare with DeiT (1.3, 4.6, 17.6)
@pytest.mark.parametrize(
    ("name", "published"),
    [("deit_tiny_patch16_224", 1.26), ("deit_small_patch16_224", 4.61), ("deit_base_patch16_224", 17.58)],
)
def test_published_counts(name, published):
    assert count(create(name, 224), 224).macs / 1e9 == pytest.approx(published, rel=0.01)


def test_vit_tiny_with_its_attention():
    """fvcore alone counts 1.080: it does not know the fused attention."""
    assert round(count(create("vit_tiny_patch16_224", 224), 224).macs / 1e9, 3) == 1.258


def test_attention_costs_the_same_written_out(monkeypatch):
    """Catches a count for fused attention that is not that of its two products."""
    fused = count(create("deit_tiny_patch16_224", 96), 96)
    timm.layers.set_fused_attn(False)
    try:
        written_out = count(create("deit_tiny_patch16_224", 96), 96)
    finally:
        timm.layers.set_fused_attn(True)
    assert "scaled_dot_product_attention" in fused.operators
    assert "matmul" in written_out.operators
    assert fused.macs == written_out.macs
    assert fused.activations < written_out.activations  # the map itself


def test_chunkwise_form():
    """Both forms by hand: 20 tokens, 3 heads of K 8 and V 4, two orders, in chunks of 16: two of whole tiles."""
    q, v = (2, 20, 3, 8), (2, 20, 3, 4)
    assert scan_macs(q, v, 2) == 2 * 20 * 3 * (2 * 3 * 8 * 4 + 8 + 4)
    per_chunk = 16 * 16 * 8 + 16 * 16 * 4 + 2 * 16 * 8 * 4 + 8 * 4
    assert chunkwise_scan_macs(q, v, 2) == 2 * 3 * (2 * 2 * per_chunk + 20 * (8 + 4))
    model = timm.create_model("metala_vit_nano", num_classes=7)
    cost = count(model, 64)
    shapes = (1, 16, 2, 32), (1, 16, 2, 64)
    assert cost.macs - cost.chunkwise == 6 * (scan_macs(*shapes, 1) - chunkwise_scan_macs(*shapes, 1))
    with pytest.raises(ValueError, match="form: got 'parallel'"):
        fvcore_handles("parallel")


@pytest.mark.long
@pytest.mark.parametrize("name", ["mvitv2_tiny", "vit_base_r50_s16_224", "vit_small_patch16_18x2_224", "convnext_atto"])
def test_other_models_of_timm(name):
    """Catches an einsum counted in rounded numbers, and a formula for what it was not derived for."""
    cost = count(timm.create_model(name), 224)
    assert cost.products == cost.torch
    assert cost.formula is None


class Odd(nn.Module):
    """With an operator that costs, and that nobody counts."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return torch.fft.fft2(self.proj(x)).real.mean((2, 3))


def test_an_uncounted_operator_is_an_error():
    with pytest.raises(
        InputError, match=r"Odd has operators that are not counted: aten::fft_fft2.*--allow aten::fft_fft2"
    ):
        count(Odd(), 8)
    with pytest.raises(InputError, match=r"not counted: aten::real;"):
        count(Odd(), 8, allow=["aten::fft_fft2"])
    cost = count(Odd(), 8, allow=["aten::fft_fft2", "aten::real"])
    assert cost.macs == 8 * 8 * 12
    assert cost.formula is None
    assert cost.mixer is None
    assert cost.rest == cost.macs


def test_counting_leaves_the_model_as_it_was():
    model = timm.create_model("metala_vit_nano", num_classes=7).train()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    count(model, 32)
    with pytest.raises(Exception, match="."):
        count(model, 0)
    assert model.training
    assert next(model.parameters()).device.type == "cpu"
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_report(tmp_path):
    """Table, files and picture of two sizes."""
    report = count_models(["metala_vit_nano", "resnet18"], [64, (64, 96)], depth=2)
    text = render(report, depth=2)
    assert "64x96" in text
    assert "MetaLABlock" in text
    assert "counts" not in text  # nothing disagrees
    files = save(report, tmp_path)
    assert json.loads(Path(files["json"]).read_text())["rows"][0]["modules"]
    lines = Path(files["csv"]).read_text().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("model,size,parameters,macs,")
    assert Path(files["png"]).read_bytes().startswith(b"\x89PNG")
    report["rows"][0]["torch"] -= 1
    report["rows"][1]["formula"] += 1
    text = render(report)
    assert "FlopCounterMode counts" in text
    assert "the formula gives" in text


@pytest.mark.parametrize("text", ["", "0", "-5", "3x", "axb", "1x2x3", "22.4"])
def test_sizes_that_are_none(text):
    with pytest.raises(InputError, match="--img-size: got"):
        parse_size(text)


def test_sizes():
    assert parse_size("512") == 512
    assert parse_size("480x640") == (480, 640)


def test_command_line(tmp_path):
    command = ["flops.py", "--json", "--models", "metala_vit_nano"]
    done = run_tool(*command, "--img-size", "64", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"][0]["formula"] == json.loads(done.stdout)["rows"][0]["macs"]
    assert "Warning" not in done.stderr
    done = run_tool(*command, "maxvit_tiny_rw_224", "--img-size", "100")
    assert done.returncode == 2, done.stderr
    assert "maxvit_tiny_rw_224 at 100: AssertionError: " in done.stderr
    assert "metala_vit_nano                    100" in done.stderr  # and the others' rows
