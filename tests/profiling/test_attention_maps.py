"""Attention maps against the definition and the explicit maps of papers; memories and fields by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tolerances import FLOAT32, relative_rms
from tool_process import run_tool
from torch import nn

from metala_vision.errors import InputError
from metala_vision.kernels import attention_map
from metala_vision.layers import MIXERS
from metala_vision.profiling.attention.maps import attention_rows, mixer_inputs, rows_of, token_at
from metala_vision.profiling.attention.memory import half_lives, reach, receptive_field
from metala_vision.profiling.attention.plots import plot_memory
from metala_vision.profiling.attention.report import Findings, load, normalised, prepared


def small(mixer="metala", num_classes=4, **arguments) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("metala_vit_nano", depth=3, num_classes=num_classes, mixer=mixer, **arguments)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize("scan", ["cycle", "cross"])
def test_rows_of_scans_equal_the_definition(scan):
    """Catches rows for columns, another query, and heads in another order."""
    model, image = small(scan=scan), torch.randn(1, 3, 64, 96)
    maps = attention_rows(model, image, [0, 1, -1], [(0.0, 0.0), (0.6, 0.5)])
    inputs = mixer_inputs(model, image, [0, 1, 2])
    assert [found.block for found in maps] == [0, 1, 2]
    for found in maps:
        mixer = model.blocks[found.block].mixer
        x, grid = inputs[found.block]
        assert found.grid == grid == (4, 6)
        q, g, _, _, _ = mixer.choose(x, grid)
        expected = attention_map(q, g, -torch.expm1(g), grid, mixer.scan, 32**-0.5).detach()
        assert relative_rms(found.rows[0], expected[0, :, 0]) <= FLOAT32
        assert relative_rms(found.rows[1], expected[0, :, 2 * 6 + 3]) <= FLOAT32
        assert found.orders == mixer.scan


def test_rows_of_softmax_are_probabilities():
    mixer = small("softmax").blocks[0].mixer
    x = torch.randn(1, 24, 128)
    rows = torch.stack(rows_of(mixer, x, (4, 6), range(24)), 1)  # [H, N, N]
    q, k, _ = (part.unflatten(-1, (2, 64)).transpose(1, 2)[0] for part in mixer.project(x, (4, 6)))
    expected = (q @ k.transpose(1, 2) / math.sqrt(64)).softmax(-1)
    assert relative_rms(rows, expected.detach()) <= FLOAT32


def test_rows_of_inline_sum_to_one_without_its_residual():
    mixer = small("inline").blocks[0].mixer
    with torch.no_grad():
        mixer.residual.fc2.weight.zero_()
        mixer.residual.fc2.bias.zero_()
    rows = rows_of(mixer, torch.randn(1, 24, 128), (4, 6), [5, 20])
    assert torch.allclose(torch.stack(rows).sum(-1), torch.ones(2, 2))


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_has_a_map(name):
    (found,) = attention_rows(small(name), torch.randn(1, 3, 64, 96), [1], [(0.5, 0.5)])
    assert found.rows.shape == (1, 2, 24)
    assert found.rows.isfinite().all()
    assert found.rows.abs().max() > 0


def test_what_has_no_map():
    image = torch.randn(1, 3, 64, 64)
    with pytest.raises(
        InputError, match="VisionTransformer: its blocks have no mixer with a map; expected a metala_vit"
    ):
        attention_rows(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2), image, [0], [(0, 0)])
    with pytest.raises(InputError, match="--block: got 3, expected -3 to 2: the model has 3 blocks"):
        attention_rows(small(), image, [3], [(0, 0)])
    with pytest.raises(InputError, match="--query: got 0.5,1.2, expected shares"):
        attention_rows(small(), image, [0], [(0.5, 1.2)])
    assert token_at((1.0, 1.0), (4, 6)) == 23


def test_half_lives_of_fixed_decays(tmp_path):
    """RetNet's heads halve after ln 2 / -ln(1 - 2^-(5 + h)) tokens of 16 pixels; on 4 times the tokens in 4 times."""
    model = small("retnet", img_size=64)
    rows = half_lives(model, torch.randn(1, 3, 64, 64))
    assert [(row["block"], row["head"]) for row in rows] == [(b, h) for b in range(3) for h in range(2)]
    for row in rows:
        expected = math.log(2) / -math.log1p(-(2.0 ** -(5 + row["head"])))
        assert row["tokens"] == row["low"] == row["high"] == pytest.approx(expected, rel=1e-5)
        assert row["pixels"] == pytest.approx(16 * expected, rel=1e-5)
        assert row["share"] == pytest.approx(expected / 16, rel=1e-5)
    larger = half_lives(model, torch.randn(1, 3, 128, 128))
    assert [row["share"] for row in larger] == pytest.approx([row["share"] for row in rows])
    endless = small("gla", img_size=64)
    endless.blocks[0].mixer.decay_bias.data.fill_(300.0)
    rows = half_lives(endless, torch.randn(1, 3, 64, 64))
    assert rows[0]["tokens"] == rows[0]["low"] == math.inf
    plot_memory([Findings("endless", False, [], rows, torch.ones(2, 2))], tmp_path / "memory.png")
    assert (tmp_path / "memory.png").is_file()
    assert half_lives(small(("softmax", "zeros")), torch.randn(1, 3, 64, 64)) == []
    spread = half_lives(timm.create_model("metala_vit_nano", mixer="hgrn"), torch.randn(1, 3, 64, 64))
    assert all(row["low"] < row["tokens"] < row["high"] for row in spread)


class Shift(nn.Module):
    """The feature of a patch is the sum of the patch on its right, and three times its own."""

    def forward_intermediates(self, x, indices, norm, intermediates_only):
        sums = nn.functional.avg_pool2d(x.sum(1, keepdim=True), 4)
        return [3 * sums + sums.roll(-1, 3)]


def test_receptive_field_by_hand():
    field = receptive_field(Shift(), torch.randn(2, 3, 16, 24), (0.3, 0.5))
    expected = torch.zeros(16, 24)
    expected[4:8, 12:16], expected[4:8, 16:20] = 9 / 16, 3 / 16
    assert torch.allclose(field, expected)
    assert reach(field)["0.5"] == pytest.approx(11 / 384, abs=1 / 384)
    assert reach(torch.ones(10, 10))["0.9"] == pytest.approx(0.9, abs=0.02)
    with pytest.raises(InputError, match="it has no forward_intermediates"):
        receptive_field(nn.Linear(2, 2), torch.randn(1, 3, 8, 8), (0, 0))


def test_the_tool(tmp_path):
    """Two models and two pictures; files, JSON, and errors that name what is wrong."""
    rng = np.random.default_rng(0)
    for name in ("one.png", "two.png"):
        Image.fromarray(rng.integers(0, 255, (80, 120, 3), dtype=np.uint8)).save(tmp_path / name)
    models = ["metala_vit_nano:depth=2", "metala_vit_nano:depth=2,mixer=softmax"]
    command = ["attention_map.py", *models, "--image", str(tmp_path / "one.png"), str(tmp_path / "two.png")]
    command += ["--img-size", "64", "--out", str(tmp_path / "out"), "--json"]
    done = run_tool(*command)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"maps", "memory", "field"} <= set(result["files"])
    numbers = result["files"].pop("numbers")
    assert json.loads(Path(numbers).read_text()) == result["models"]
    for path in result["files"].values():
        with Image.open(path) as picture:
            assert min(picture.size) > 100
    assert [model["model"] for model in result["models"]] == models
    assert len(result["models"][0]["half_lives"]) == 4
    assert result["models"][1]["half_lives"] == []
    assert 0 < result["models"][0]["reach"]["0.5"] < result["models"][0]["reach"]["0.9"] <= 1
    failed = run_tool("attention_map.py", "vit_tiny_patch16_224", "--image", str(tmp_path / "one.png"))
    assert failed.returncode == 2
    assert "its blocks have no mixer with a map" in failed.stderr


def saved(folder: Path, **arguments) -> tuple[Path, nn.Module]:
    """A checkpoint as a run leaves it, with a moving average beside its weights."""
    model = small(num_classes=4, **arguments)
    described = dict(
        task="classification",
        architecture="metala_vit_nano",
        model_args=dict(depth=3, **arguments),
        num_classes=4,
        input_size=[arguments.get("in_chans", 3), *arguments["img_size"]],
        mean=[0.4] * arguments.get("in_chans", 3),
        std=[0.2] * arguments.get("in_chans", 3),
        label_names=None,
    )
    raw = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    torch.save(dict(state_dict=raw, state_dict_ema=model.state_dict(), description=described), folder / "last.pth")
    return folder / "last.pth", model


def test_a_checkpoint(tmp_path):
    """Its moving average, its size, its mean; grey pictures too."""
    path, model = saved(tmp_path, img_size=(48, 80), in_chans=1)
    shown = load(str(path), None)
    assert shown.trained
    assert shown.size == (48, 80)
    image = torch.randn(1, 1, 48, 80)
    assert torch.equal(shown.model(image), model(image))
    pixels = np.full((100, 100, 1), 102, dtype=np.uint8)
    assert torch.allclose(normalised(prepared(pixels, shown.size), shown), torch.zeros(1, 48, 80), atol=1e-6)
    assert load(str(path), 64).size == (64, 64)
    assert len(load("metala_vit_nano:in_chans=1", None).mean) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pth"], "file: no file none.pth"),
        (["broken.ckpt"], "file: broken.ckpt is no checkpoint that can be read"),
        (["metala_vit_nan"], "model: unknown model 'metala_vit_nan'"),
        (["metala_vit_nano:mixer=s4"], "model: metala_vit_nano:mixer=s4: mixer: got 's4'"),
        (["metala_vit_nano:depth=1", "--block", "0", "--head", "7"], "--head: got 7, expected -2 to 1"),
        (["metala_vit_nano:depth=1", "--block", "4"], "--block: got 4, expected -1 to 0"),
        (["metala_vit_nano:depth=1", "--query", "2,0"], "--query: got 2,0, expected shares"),
        (["metala_vit_nano:depth=1", "--image", "none.png"], "--image: none.png"),
    ],
    ids=str,
)
def test_errors_of_the_tool(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("grey.png")
    Path("broken.ckpt").write_bytes(b"no checkpoint")
    done = run_tool("attention_map.py", "--image", "grey.png", "--img-size", "32", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
