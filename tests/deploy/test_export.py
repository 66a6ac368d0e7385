"""Exported files in onnxruntime and OpenVINO: the model's numbers at every size, in plain operators, or no file."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import timm
import torch
from small_models import strong
from timm.models import save_for_hf
from tolerances import FLOAT32, relative_rms
from torch import Tensor, nn

import metala_vision
from metala_vision.deploy import exporting, model_of, runtime
from metala_vision.errors import InputError
from metala_vision.kernels import SCAN_ORDERS, gated_linear_attention
from metala_vision.layers import MIXERS

SMALL = dict(embed_dim=32, depth=2, num_heads=2, img_size=64)
NAMES = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
# Sides that are exchanged, that are padded, a single patch, more chunks than one group has.
SHAPES = [(2, 3, 64, 96), (1, 3, 96, 64), (3, 3, 70, 100), (1, 3, 16, 16), (1, 3, 272, 400)]


def assert_equal_at_all_sizes(file: str, model: Callable[[Tensor], Tensor], names: list[str] = NAMES) -> None:
    for name in names:
        run = runtime(name, file, threads=1)
        for shape in SHAPES:
            x = torch.randn(shape)
            with torch.no_grad():
                wanted = model(x)
            for found, expected in zip(run(x), wanted if isinstance(wanted, list) else [wanted], strict=True):
                assert found.shape == expected.shape
                assert relative_rms(found, expected) <= FLOAT32, (name, shape)


@pytest.mark.long
def test_one_file_for_all_sizes(tmp_path):
    """Catches a baked-in size or batch, an operator of somebody's own, and scans that forget by tokens."""
    model = strong(timm.create_model("metala_vit_nano", **SMALL | dict(depth=4)))
    result = metala_vision.export(model, tmp_path / "a" / "m.onnx")
    assert result["outputs"] == ["logits"]
    assert set(result["differences"]) == set(NAMES)
    assert all(len(by_shape) == 3 for by_shape in result["differences"].values())
    assert_equal_at_all_sizes(result["file"], model)
    written = onnx.load(result["file"])
    onnx.checker.check_model(written)
    assert {node.domain for node in written.graph.node} == {""}
    assert {opset.domain: opset.version for opset in written.opset_import}[""] == 20
    (image,) = written.graph.input
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["batch", 3, "height", "width"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["m.onnx"]


@pytest.mark.long
@pytest.mark.parametrize("mixer", [name for name in MIXERS if name != "metala"])
def test_every_mixer(mixer, tmp_path):
    model = strong(timm.create_model("metala_vit_nano", mixer=mixer, **SMALL))
    assert_equal_at_all_sizes(metala_vision.export(model, tmp_path / "m.onnx")["file"], model)


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        dict(scan="alternate"),
        dict(scan="cross"),
        dict(scan="causal"),
        dict(scan=("column_reverse", "row")),
        dict(local_conv=False, self_aug=False, decay_bias=False),
        dict(mlp_conv=True, decay_scale="none"),
        dict(pos_embed="learn"),
        dict(proj_drop_rate=0.1, global_pool="avgmax"),
    ],
    ids=str,
)
def test_every_form(options, tmp_path):
    model = strong(timm.create_model("metala_vit_nano", **SMALL, **options))
    assert_equal_at_all_sizes(metala_vision.export(model, tmp_path / "m.onnx")["file"], model)


@pytest.mark.long
@pytest.mark.parametrize("mixer", ["metala", "kernel", "classes", None])
def test_vits_of_timm(mixer, tmp_path):
    """Linearized ones, and a softmax ViT, whose position embedding OpenVINO resizes with other weights by itself."""
    small = dict(depth=2, embed_dim=48, num_heads=3, img_size=64)
    if mixer is None:
        model = timm.create_model("deit_tiny_patch16_224", dynamic_img_size=True, dynamic_img_pad=True, **small)
    else:
        model = timm.create_model("linearized_vit", teacher="vit_tiny_patch16_224", mixer=mixer, states=8, **small)
    model = strong(model)
    assert_equal_at_all_sizes(metala_vision.export(model, tmp_path / "m.onnx")["file"], model)


class Scan(nn.Module):
    """The operator alone, on values that are an image's."""

    def __init__(self, scan: tuple[str, ...], with_key: bool):
        super().__init__()
        self.scan, self.with_key = scan, with_key

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = x.shape[2], x.shape[3]
        q, g, k, v, w = x.flatten(2).transpose(1, 2).unflatten(-1, (2, -1)).split([3, 3, 3, 2, 3], -1)
        key = k if self.with_key else None
        values = torch.cat([v, w], -1)
        return gated_linear_attention(q, -g.abs(), values, k=key, grid=(rows, cols), scan=self.scan).flatten(1)


@pytest.mark.parametrize(
    ("scan", "with_key"),
    [
        (("column_reverse",), False),
        pytest.param(("row",), True, marks=pytest.mark.long),
        pytest.param(SCAN_ORDERS, True, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_scans_at_the_ends_of_the_gate(scan, with_key, tmp_path, monkeypatch):
    """Against float64: decays at the floor of the gate, at one, and next to it, over up to a thousand tokens."""
    monkeypatch.setattr(exporting, "_shapes", lambda *_: [(2, 28, 5, 7), (1, 28, 1, 3)])
    model = Scan(scan, with_key).eval()
    file = metala_vision.export(model, tmp_path / "m.onnx")["file"]
    generator = torch.Generator().manual_seed(0)
    for name in NAMES:
        run = runtime(name, file, threads=1)
        for shape in [(2, 28, 6, 5), (1, 28, 1, 1), (1, 28, 33, 31), (1, 28, 32, 32)]:
            for size in (1e-4, 1e-2, 1.0, 100.0):
                x = torch.randn(shape, generator=generator)
                x.unflatten(1, (2, 14))[:, :, 3:6] *= size
                (found,) = run(x)
                assert relative_rms(found, model(x.double())) <= FLOAT32, (name, shape, size)


@pytest.mark.long
def test_features_and_a_checkpoint(tmp_path, checkpoint):
    """What a run has left: its preprocessing travels in the file; its maps can be had instead of its logits."""
    file, model = checkpoint
    result = metala_vision.export(file, tmp_path / "m.onnx", img_size=(32, 48))
    run = runtime("onnxruntime", result["file"])
    described = json.loads(run.metadata)
    assert described["label_names"] == ["cat", "dog"]
    if "openvino" in NAMES:
        assert json.loads(runtime("openvino", result["file"]).metadata) == described
    assert described["mean"] == [0.5, 0.4, 0.3]
    assert described["input_size"] == [3, 32, 48]
    x = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        assert relative_rms(run(x)[0], model(x)) <= FLOAT32
    maps = metala_vision.export(file, tmp_path / "f.onnx", features_only=True, out_indices=(0, 1))
    assert maps["outputs"] == ["map0", "map1"]
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    assert json.loads(runtime("onnxruntime", maps["file"]).metadata)["task"] == "features"
    for found, wanted in zip(runtime("onnxruntime", maps["file"])(x), expected, strict=True):
        assert relative_rms(found, wanted) <= FLOAT32


@pytest.fixture
def checkpoint(tmp_path):
    """As a run leaves it, and its model."""
    model = strong(timm.create_model("metala_vit_nano", num_classes=2, **SMALL))
    described = dict(
        task="classification",
        architecture="metala_vit_nano",
        model_args=dict(num_classes=2, **SMALL),
        num_classes=2,
        label_names=["cat", "dog"],
        input_size=[3, 64, 64],
        crop_pct=1.0,
        interpolation="bicubic",
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.2, 0.2],
    )
    torch.save({"state_dict": model.state_dict(), "description": described}, tmp_path / "best.pth")
    return tmp_path / "best.pth", model


@pytest.mark.long
@pytest.mark.skipif("openvino" not in NAMES, reason="OpenVINO is not installed")
def test_openvino(tmp_path, checkpoint):
    file, model = checkpoint
    result = metala_vision.export(file, tmp_path / "out" / "m.xml")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["m.bin", "m.xml"]
    assert result["bytes"] > 4 * sum(p.numel() for p in model.parameters())
    assert json.loads(runtime("openvino", result["file"]).metadata)["label_names"] == ["cat", "dog"]
    assert_equal_at_all_sizes(result["file"], model, ["openvino"])
    with pytest.raises(InputError, match="onnxruntime does not take"):
        runtime("onnxruntime", result["file"])


def test_fixed_sizes(tmp_path):
    model = strong(timm.create_model("metala_vit_nano", **SMALL))
    file = metala_vision.export(model, tmp_path / "m.onnx", dynamic=(), img_size=(48, 80))["file"]
    dims = onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [1, 3, 48, 80]


def test_a_file_with_other_numbers_is_not_left_behind(tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.TOLERANCES, "float32", 0.0)
    model = strong(timm.create_model("metala_vit_nano", **SMALL | dict(depth=1)))
    (tmp_path / "m.onnx").write_text("an older file")
    with pytest.raises(InputError, match="onnxruntime gives other numbers for images of 2x3x64x64: .* not kept"):
        metala_vision.export(model, tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "an older file"


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("metala_vit_nan", {}, "source: got 'metala_vit_nan', .*did you mean metala_vit_nano"),
        ("metala_vit_nano", dict(file="m.pb"), "file: got .*m.pb, expected one that ends in .onnx or .xml"),
        (
            "metala_vit_nano",
            dict(format="openvino"),
            "expected one that ends in .xml for the format 'openvino'",
        ),
        ("metala_vit_nano", dict(format="tflite"), "format: got 'tflite', expected one of"),
        ("metala_vit_nano", dict(dynamic=("batch", "channels")), "dynamic: got 'channels', expected some of"),
        ("metala_vit_nano", dict(opset=17), "opset: got 17, expected 20 or later"),
        ("metala_vit_nano", dict(mixer="mamba"), "source: metala_vit_nano: mixer: got 'mamba'"),
        ("metala_vit_nano", dict(img_size=(1, 2, 3)), "img_size: got .1, 2, 3., expected pixels of a side"),
        ("metala_vit_nano", dict(check_sizes=[64, 0]), "check_sizes: got 0, expected pixels of a side"),
        ("metala_vit_nano", dict(check_sizes=[64], dynamic=["batch"]), "check_sizes: got .64. for a file of one size"),
        ("metala_vit_nano", dict(features_only=True, out_indices=(50,)), "source: metala_vit_nano: "),
        (
            "swin_tiny_patch4_window7_224",
            {},
            "takes no images of 143x224 pixels: .*dynamic=.'batch',., without check_sizes",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit(source, options, message, tmp_path):
    options = dict(options)
    with pytest.raises(InputError, match=message):
        metala_vision.export(source, tmp_path / options.pop("file", "m.onnx"), **options)
    assert not list(tmp_path.iterdir())


class Gives(nn.Module):
    """A model that gives anything."""

    def __init__(self, outputs: Callable[[Tensor], object]):
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> object:
        return self.outputs(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Conv2d(3, 2, 1), "source: the model is in training mode; call its eval"),
        (nn.Conv2d(3, 2, 1).half().eval(), "source: weight is float16 on cpu, expected float32 on the CPU"),
        (Gives(lambda x: [x, x / 0]).eval(), "gives numbers that are not finite for images of 224x224 pixels"),
        (Gives(lambda x: {"out": x}).eval(), "the model gives a dict, expected a tensor or a list of them"),
    ],
    ids=["training", "half", "infinite", "dict"],
)
def test_models_that_cannot_be_exported(model, message, tmp_path):
    with pytest.raises(InputError, match=message):
        metala_vision.export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_what_a_file_gives_is_compared_whole():
    """Catches a NaN behind a first output that is right, and an output that is missing."""
    x, nan = torch.ones(2), torch.full((2,), torch.nan)
    for theirs in ([x, nan], [x], [x, torch.ones(3)]):
        found = exporting._differences(lambda _, theirs=theirs: theirs, [torch.zeros(1, 3, 2, 2)], [[x, x]])
        assert found == {"1x3x2x2": float("inf")}


def test_places_that_cannot_be_written(tmp_path):
    model = strong(timm.create_model("metala_vit_nano", **SMALL | dict(depth=1)))
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(InputError, match="file: .*m.onnx is a folder"):
        metala_vision.export(model, tmp_path / "m.onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: .*m.onnx cannot be written"):
        metala_vision.export(model, tmp_path / "file" / "m.onnx")


@pytest.mark.long
def test_an_opset_that_torch_does_not_write(tmp_path):
    with pytest.raises(InputError, match="opset: got 99, which torch .* does not write"):
        metala_vision.export(nn.Conv2d(3, 2, 1).eval(), tmp_path / "m.onnx", opset=99)
    assert not list(tmp_path.iterdir())


def checkpoint_of(name: str, folder: Path, **arguments) -> tuple[Path, nn.Module]:
    """As a run leaves it, and its model."""
    model = timm.create_model(name, num_classes=2, **arguments).eval()
    described = dict(task="classification", architecture=name, model_args=arguments, num_classes=2, label_names=None)
    torch.save({"state_dict": model.state_dict(), "description": described}, folder / f"{name}.pth")
    return folder / f"{name}.pth", model


def test_features_of_a_convolutional_checkpoint_are_its_own(tmp_path):
    """Catches random weights: timm's wrapper of features gives the weights of such a model other names."""
    file, model = checkpoint_of("convnext_atto", tmp_path)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = model_of(file, features_only=True, out_indices=(1, 3))[0](x)
        expected = model.forward_intermediates(x, indices=[1, 3], intermediates_only=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["name", "checkpoint", "folder"])
@pytest.mark.parametrize("features", [{}, dict(features_only=True, out_indices=(0,))], ids=["logits", "features"])
def test_a_softmax_vit_takes_any_size(kind, features, tmp_path):
    """Also one that was trained at a size of its own; its weights are its own."""
    name, small = "deit_tiny_patch16_224", dict(depth=1, embed_dim=48, num_heads=3, img_size=64)
    file, model = checkpoint_of(name, tmp_path, **small)
    if kind == "folder":
        save_for_hf(model, str(tmp_path / "out"), model_args=small, safe_serialization=True)
    source = dict(name=name, checkpoint=file, folder=tmp_path / "out")[kind]
    found, described = model_of(source, **(small if kind == "name" else {}), **features)
    outputs = found(torch.zeros(1, 3, 100, 60))
    assert (outputs[0] if features else outputs).shape[0] == 1
    assert described["task"] == ("features" if features else "classification")
    if kind != "name":
        weights = getattr(found, "model", found).state_dict()
        assert torch.equal(weights["blocks.0.attn.qkv.weight"], model.state_dict()["blocks.0.attn.qkv.weight"])
        with pytest.raises(InputError, match="pretrained: got it for .*, which has weights of its own"):
            model_of(source, pretrained=True)
    with pytest.raises(InputError, match=f"source: .*{'deit_tiny' if kind != 'folder' else 'out'}.*: "):
        model_of(source, colour="blue")


def test_packages_that_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="'onnx' needs onnxruntime, which is not installed: pip install onnxruntime"):
        metala_vision.export("metala_vit_nano", tmp_path / "m.onnx")
    with pytest.raises(InputError, match="'openvino' needs openvino, which is not installed"):
        metala_vision.export("metala_vit_nano", tmp_path / "m.xml")


@pytest.mark.long
def test_the_tool(load_tool, tmp_path, checkpoint, capsys):
    sizes = ("--img-size", "32x48", "--check-sizes", "24", "40x72", "88", "17x16")
    result = load_tool("export.py")(str(checkpoint[0]), "--out", str(tmp_path / "m.onnx"), *sizes)
    assert result["outputs"] == ["logits"]
    shapes = ["2x3x32x48", "3x3x24x24", "1x3x40x72", "2x3x88x88", "3x3x17x16"]
    assert [list(by_shape) for by_shape in result["differences"].values()] == [shapes, shapes]
    assert "onnxruntime: largest difference" in capsys.readouterr().out
    result = load_tool("export.py")(
        "metala_vit_nano:in_chans=1", "--features-only", "3", "--out", str(tmp_path / "f.onnx")
    )
    assert result["outputs"] == ["map0"]
    with pytest.raises(InputError, match="source: got img_size in .*, which is an option: --img-size"):
        load_tool("export.py")("metala_vit_nano:img_size=64", "--out", str(tmp_path / "g.onnx"))
    assert onnx.load(tmp_path / "f.onnx").graph.input[0].type.tensor_type.shape.dim[1].dim_value == 1
