"""The experiment with a saliency network: an ONNX file with its names becomes timm's model and a decoder."""

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from small_runs import ROOT
from torch.nn import functional as F

from metala_vision.errors import InputError
from metala_vision.linearize import linearize

DEPTH, WIDTH = 2, 64
SMALL = dict(embed_dim=WIDTH, depth=DEPTH, num_heads=1, num_classes=0)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A file with random weights under the exporter's names, and what timm calls them."""
    torch.manual_seed(0)
    timms = timm.create_model("vit_small_patch14_dinov2", dynamic_img_size=True, **SMALL).eval()
    with torch.no_grad():
        for p in timms.parameters():
            p.add_(0.4 * torch.randn_like(p))
    weights, found, nodes = timms.state_dict(), {}, []

    def multiply(node: str, matrix: torch.Tensor) -> None:
        found[f"onnx::MatMul_{len(found)}"] = matrix.T
        nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{len(found) - 1}"], [node], name=node))

    found["backbone.embeddings.cls_token"] = weights["cls_token"]
    for kind in ("weight", "bias"):
        found[f"backbone.embeddings.patch_embeddings.projection.{kind}"] = weights[f"patch_embed.proj.{kind}"]
        found[f"backbone.layernorm.{kind}"] = weights[f"norm.{kind}"]
    found["onnx::Concat_7"], found["onnx::Reshape_8"] = weights["pos_embed"][:, :1], weights["pos_embed"][:, 1:]
    place = "/backbone/embeddings/"
    nodes.append(helper.make_node("Concat", ["onnx::Concat_7", "y"], ["a"], name=f"{place}Concat_6", axis=1))
    nodes.append(helper.make_node("Reshape", ["onnx::Reshape_8", "z"], ["b"], name=f"{place}Reshape_1"))
    for i in range(DEPTH):
        old, new, node = f"backbone.encoder.layer.{i}", f"blocks.{i}", f"/backbone/encoder/layer.{i}"
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "mlp.fc1.bias", "mlp.fc2.bias"):
            found[f"{old}.{part}"] = weights[f"{new}.{part}"]
        for k in (1, 2):
            found[f"{old}.layer_scale{k}.lambda1"] = weights[f"{new}.ls{k}.gamma"]
            multiply(f"{node}/mlp/fc{k}/MatMul", weights[f"{new}.mlp.fc{k}.weight"])
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(j * WIDTH, (j + 1) * WIDTH)
            found[f"{old}.attention.attention.{part}.bias"] = weights[f"{new}.attn.qkv.bias"][rows]
            multiply(f"{node}/attention/attention/{part}/MatMul", weights[f"{new}.attn.qkv.weight"][rows])
        found[f"{old}.attention.output.dense.bias"] = weights[f"{new}.attn.proj.bias"]
        multiply(f"{node}/attention/output/dense/MatMul", weights[f"{new}.attn.proj.weight"])
    channels = (WIDTH, 8, 6, 4)
    for i, (before, after) in enumerate(zip(channels, channels[1:]), 1):
        found[f"decoder.upconv{i}.weight"] = 0.1 * torch.randn(before, after, 4, 4)
        found[f"decoder.upconv{i}.bias"] = torch.randn(after)
        for name in ("running_mean", "weight", "bias"):
            found[f"decoder.bn{i}.{name}"] = torch.randn(after)
        found[f"decoder.bn{i}.running_var"] = torch.rand(after) + 0.5
    found["decoder.final_conv.weight"], found["decoder.final_conv.bias"] = torch.randn(1, 4, 1, 1), torch.randn(1)
    stored = [numpy_helper.from_array(value.contiguous().numpy(), name) for name, value in found.items()]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "a")]
    file = tmp_path_factory.mktemp("network") / "network.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], stored)), file)
    return file, timms, found


def test_the_encoder_is_timms_model(load_tool, network, tmp_path):
    file, timms, _ = network
    load_tool("saliency_maps.py")(str(file), "--teacher", str(tmp_path / "a" / "teacher.pth"))
    written = torch.load(tmp_path / "a" / "teacher.pth", weights_only=True)
    assert set(written) == set(timms.state_dict())
    for name, value in timms.state_dict().items():
        assert torch.equal(written[name], value), name


def test_maps_of_checkpoints_are_held_against_the_networks(load_tool, network, tmp_path):
    """The network's own encoder as a checkpoint gives its maps; another one gives what the definitions say."""
    file, timms, found = network
    rng = np.random.default_rng(0)
    for i in range(5):
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((60, 50), Image.Resampling.BILINEAR).save(tmp_path / f"{i}.png")
    described = dict(task="linearization", architecture="linearized_vit", label_names=None)
    models = {}
    for name, kept in (("same", (0, 1)), ("linear", ())):
        settings = dict(mixer="classes", keep_softmax=kept, states=4)
        models[name] = linearize(timms, **settings).eval()
        described["model_args"] = dict(teacher="vit_small_patch14_dinov2", **SMALL, **settings)
        torch.save({"state_dict": models[name].state_dict(), "description": described}, tmp_path / f"{name}.pth")
    files = [str(tmp_path / f"{name}.pth") for name in models]
    options = ["--data-root", str(tmp_path), "--images", "4", "--sizes", "28", "56", "--out", str(tmp_path / "maps")]
    rows = load_tool("saliency_maps.py")(str(file), "--compare", *files, *options)["rows"]
    assert [(row["encoder"], row["size"], row["images"]) for row in rows] == [
        (f, s, 4) for s in (28, 56) for f in files
    ]
    for row in rows[::2]:
        assert row["correlation"] == pytest.approx(1, abs=1e-4)
        assert row["difference"] == pytest.approx(0, abs=1e-4)
    assert all(-1 <= row["correlation"] < 0.9999 and row["difference"] > 1e-4 for row in rows[1::2]), rows
    assert (tmp_path / "maps.png").stat().st_size > 10_000
    (tmp_path / "1.png").write_text("no picture")
    one_by_one = [*options[:4], "--sizes", "28", "--batch", "1"]
    (row, _) = load_tool("saliency_maps.py")(str(file), "--compare", *files, *one_by_one)["rows"]
    assert row["images"] == 3
    described["model_args"]["teacher"] = "vit_small_patch16_224"
    other = linearize(timm.create_model("vit_small_patch16_224", **SMALL), mixer="classes", states=4)
    torch.save({"state_dict": other.state_dict(), "description": described}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="other.pth is of vit_small_patch16_224, expected an encoder of the network"):
        load_tool("saliency_maps.py")(str(file), "--compare", str(tmp_path / "other.pth"), *options)
    with pytest.raises(InputError, match="--data-root: expected a folder"):
        load_tool("saliency_maps.py")(str(file), "--compare", *files)


def test_the_decoder(network, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from saliency_network import read_network

    found = network[2]
    decoder = read_network(network[0])[1].eval()
    x = torch.randn(2, 6, WIDTH)
    y = x.transpose(1, 2).reshape(2, WIDTH, 2, 3)
    for i in (1, 2, 3):
        y = F.conv_transpose2d(y, found[f"decoder.upconv{i}.weight"], found[f"decoder.upconv{i}.bias"], 2, 1)
        mean, var, weight, bias = (
            found[f"decoder.bn{i}.{name}"].view(-1, 1, 1) for name in ("running_mean", "running_var", "weight", "bias")
        )
        y = ((y - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)
    y = F.conv2d(y, found["decoder.final_conv.weight"], found["decoder.final_conv.bias"])
    y = F.interpolate(y, (28, 42), mode="bilinear").sigmoid()[:, 0]
    torch.testing.assert_close(decoder(x, (2, 3), (28, 42)), y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "got neither --teacher nor --compare"),
        (["--compare", "a.pth", "--data-root", ".", "--sizes", "225"], "--sizes: got 225, expected multiples of 14"),
        (["--compare", "a.pth", "--data-root", "."], "file: no file a.pth"),
    ],
    ids=str,
)
def test_what_does_not_fit(options, message, load_tool, network):
    with pytest.raises(InputError, match=message):
        load_tool("saliency_maps.py")(str(network[0]), *options)


def test_another_file(load_tool, tmp_path):
    (tmp_path / "a.onnx").write_text("no network")
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), tmp_path / "b.onnx")
    for name, message in (("a", "no ONNX file that can be read"), ("b", "expected vit_s_focus.onnx"), ("c", "no file")):
        with pytest.raises(InputError, match=message):
            load_tool("saliency_maps.py")(str(tmp_path / f"{name}.onnx"), "--teacher", str(tmp_path / "t.pth"))
