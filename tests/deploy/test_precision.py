"""Files of fewer bytes: their numbers stay near the model's, and scans and gates stay in float32."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import numpy_helper
from PIL import Image
from tolerances import relative_rms

import metala_vision
from metala_vision.deploy import runtime
from metala_vision.deploy.precision import halve, quantize
from metala_vision.errors import InputError

pytest.importorskip("onnxruntime")
NAMES = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
SMALL = dict(embed_dim=64, depth=2, num_heads=2, img_size=64)
WEIGHTS = 1e-3  # relative: half a unit in the last place of float16 for each of them
INT8 = 0.08  # seven bits of weights, eight of activations


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model whose weights differ in size, as trained ones do, and its file."""
    torch.manual_seed(0)
    model = timm.create_model("metala_vit_nano", num_classes=10, **SMALL).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    file = tmp_path_factory.mktemp("exported") / "m.onnx"
    metala_vision.export(model, file)
    return model, file


def numbers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


def computed_products(model: onnx.ModelProto) -> int:
    """Products of two operands that are computed: those of the scans."""
    weights = {weight.name for weight in model.graph.initializer}
    return sum(node.op_type == "MatMul" and not weights & set(node.input) for node in model.graph.node)


@pytest.mark.long
def test_half(exported, tmp_path):
    """Every weight is its own rounded to float16, whatever shape it has, and is computed with in float32."""
    model, file = exported
    half = Path(shutil.copy(file, tmp_path / "half.onnx"))
    halve(half)
    onnx.checker.check_model(str(half), full_check=True)
    before, after = numbers(onnx.load(file)), numbers(onnx.load(half))
    large = {name for name, value in before.items() if value.size >= 1024 and value.dtype == np.float32}
    assert len(large) > 10
    for name in large:
        assert (after[f"{name}_half"] == before[name].astype(np.float16)).all()
    saved = 2 * sum(before[name].size for name in large)
    assert file.stat().st_size - half.stat().st_size > 0.9 * saved > 1e5
    assert {node.op_type for node in onnx.load(half).graph.node} >= {"Cast"}
    x = torch.randn(3, 3, 70, 100)
    with torch.no_grad():
        wanted = model(x)
    (found,) = runtime("onnxruntime", half)(x)
    assert 0 < relative_rms(found, wanted) <= WEIGHTS
    (one,) = [value for name, value in before.items() if name == min(large)]
    assert one.dtype == np.float32  # the other file has not changed


@pytest.mark.long
@pytest.mark.parametrize("calibrated", [False, True])
def test_int8(exported, tmp_path, calibrated):
    """All products with weights and no others; plain operators; near the model at another size, too."""
    model, file = exported
    small = Path(shutil.copy(file, tmp_path / "int8.onnx"))
    images = [torch.randn(1, 3, 64, 64) for _ in range(8)]
    quantize(small, images if calibrated else None)
    before, after = onnx.load(file), onnx.load(small)
    onnx.checker.check_model(after)
    assert {node.domain for node in after.graph.node} == {""}
    kinds = [node.op_type for node in after.graph.node]
    weights = {name for name, value in numbers(before).items() if value.size >= 1024}
    products = [n for n in before.graph.node if n.op_type in ("MatMul", "Gemm") and weights & set(n.input)]
    if calibrated:
        whole = {out for node in after.graph.node if node.op_type == "DequantizeLinear" for out in node.output}
        matrices = [node for node in after.graph.node if node.op_type in ("MatMul", "Gemm")]
        assert sum(set(node.input[:2]) <= whole for node in matrices) == len(products)
        assert sum(bool(whole & set(node.input)) for node in matrices) == len(products)
    else:
        assert kinds.count("MatMulInteger") == len(products)
        assert computed_products(after) == computed_products(before)
    for value in numbers(after).values():
        assert value.dtype != np.int8 or np.abs(value.astype(int)).max() <= 64  # seven bits
    for shape in ((2, 3, 64, 64), (1, 3, 100, 52)):
        x = torch.randn(shape)
        with torch.no_grad():
            wanted = model(x)
        for name in NAMES:
            (found,) = runtime(name, small)(x)
            assert 0 < relative_rms(found, wanted) <= INT8, name


@pytest.mark.long
def test_a_position_embedding_is_no_weight(tmp_path):
    """It is resampled by products in the graph, which OpenVINO does not compile in int8."""
    small = dict(depth=1, embed_dim=48, num_heads=3, img_size=64)
    images = [torch.randn(1, 3, 64, 64) for _ in range(2)]
    result = metala_vision.export(
        "deit_tiny_patch16_224", tmp_path / "m.onnx", precision="int8", calibration=images, **small
    )
    assert set(result["differences"]) >= {"onnxruntime"}
    assert not any(
        "pos_embed" in name and value.dtype == np.int8 for name, value in numbers(onnx.load(result["file"])).items()
    )


@pytest.mark.long
def test_calibrated_on_a_folder(tmp_path):
    """Through the door: images of any kind, prepared as the model says; OpenVINO takes the file as well."""
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(5):
        pixels = rng.integers(0, 255, (80, 60 + 10 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "deep" / f"{number}.png")
    options = dict(num_classes=10, **SMALL, precision="int8", calibration=tmp_path / "photos")
    result = metala_vision.export("metala_vit_nano", tmp_path / "m.onnx", **options)
    assert result["precision"] == "int8"
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(result["file"]).graph.node)
    metala_vision.export("metala_vit_nano", tmp_path / "m.xml", **options)
    assert (tmp_path / "m.bin").stat().st_size < 0.5 * 4 * sum(
        p.numel() for p in timm.create_model("metala_vit_nano", num_classes=10, **SMALL).parameters()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(precision="int4"), "precision: got 'int4', expected one of .*float16"),
        (dict(precision="int8", file="m.pt2"), "precision: got 'int8', but a file of 'torch' has float32 alone"),
        (dict(calibration="photos"), "calibration: got images for 'float32', which needs none"),
        (dict(precision="int8", calibration="none"), "calibration: no folder none"),
        (dict(precision="int8", calibration="EMPTY"), "calibration: .* has no images"),
        (dict(precision="int8", calibration="BROKEN"), "calibration: .*a.png: "),
        (dict(precision="int8", format="openvino", file="m.xml"), "OpenVINO makes float32 of int8 without it"),
        (dict(precision="int8", calibration=[]), "calibration: got no images, expected some of .1, 3, height, width"),
        (
            dict(precision="int8", calibration=[torch.zeros(3, 64, 64)]),
            r"got an image .3, 64, 64., expected .1, 3",
        ),
        (
            dict(precision="int8", calibration=[torch.zeros(1, 3, 80, 80)], dynamic=("batch",)),
            r"got an image .1, 3, 80, 80., expected .1, 3, 64, 64.",
        ),
        (dict(precision="int8", calibration=[1]), "got an image int, expected"),
    ],
    ids=str,
)
def test_what_does_not_fit(options, message, tmp_path):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BROKEN").mkdir()
    (tmp_path / "BROKEN" / "a.png").write_text("no picture")
    options = {"file": "m.onnx", **options}
    if options.get("calibration") in ("EMPTY", "BROKEN"):
        options["calibration"] = tmp_path / options["calibration"]
    with pytest.raises(InputError, match=message):
        metala_vision.export("metala_vit_nano", tmp_path / "out" / options.pop("file"), **SMALL, **options)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.long
def test_weights_that_do_not_fit(tmp_path):
    model = timm.create_model("metala_vit_nano", num_classes=10, **SMALL).eval()
    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight[0, 0] = 1e5
    with pytest.raises(InputError, match="has numbers beyond 65504, which float16 cannot hold"):
        metala_vision.export(model, tmp_path / "m.onnx", precision="float16")
    assert not list(tmp_path.iterdir())
