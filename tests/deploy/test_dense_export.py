"""Detectors and segmenters in onnxruntime and OpenVINO: the model's numbers at every size, torchvision's detections."""

import importlib.util
import json

import onnx
import pytest
import torch
from small_models import DECODERS, strong
from tolerances import FLOAT32, relative_rms
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import metala_vision
from metala_vision.dense import detector, segmenter
from metala_vision.deploy import detections, model_of, runtime
from metala_vision.deploy.dense_graph import dense_graph
from metala_vision.errors import InputError

SMALL = dict(embed_dim=32, depth=2, num_heads=1, img_size=64)
NAMES = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
# Sides that are exchanged, that nothing divides, smaller than the strides of the last maps, larger than when traced.
SIZES = [(2, 96, 160), (1, 160, 96), (3, 70, 101), (1, 17, 33), (1, 530, 611)]
OPTIONS = dict(out_channels=128, min_size=96, max_size=150, topk_candidates=60, detections_per_img=40)


def build(kind: str, classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    model = detector(kind, "metala_vit_nano", classes, backbone_arguments=SMALL, **{**OPTIONS, **options})
    if kind == "fcos":
        return strong(model, 0.1)
    # RetinaNet's head has no norm and its boxes are exponentials: far weights would make much of the last digit.
    strong(model.head.classification_head.cls_logits, 1.0)
    return strong(model, 0.02)


def images_of(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def assert_equal_at_all_sizes(file: str, model: nn.Module, shift: float = 0.0) -> None:
    for name in NAMES:
        run = runtime(name, file, threads=2)
        for size in SIZES:
            x = images_of(*size) - shift
            with torch.no_grad():
                wanted = model(x)
            for found, expected in zip(run(x), [wanted] if isinstance(wanted, Tensor) else wanted, strict=True):
                assert found.shape == expected.shape
                assert relative_rms(found, expected) <= FLOAT32, (name, size)


def assert_same(found: dict, wanted: dict, pixels: float) -> None:
    assert len(found["scores"]) > 5
    assert found["labels"].tolist() == wanted["labels"].tolist()
    torch.testing.assert_close(found["scores"], wanted["scores"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["boxes"], wanted["boxes"], rtol=0, atol=pixels)


def choice(described: dict) -> dict:
    return {key: described[key] for key in ("score_thresh", "topk_candidates", "nms_thresh", "detections_per_img")}


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
@pytest.mark.parametrize("size", [(96, 150), (96, 96), (70, 150)], ids=str)
def test_candidates_become_the_detections_of_torchvision(kind, size):
    """Exactly: catches another order of classes, a threshold, a level or a border that is another one."""
    model = build(kind)
    graph, described = dense_graph(model, {})
    images = images_of(2, *size)
    with torch.no_grad():
        wanted = model(list(images))
        boxes, scores, levels = graph(images)
    assert boxes.shape == (2, len(levels), 4)
    assert scores.shape == (2, len(levels), 3)
    assert levels.unique().tolist() == [0, 1, 2, 3, 4]
    for found, expected in zip(detections(boxes, scores, levels, **choice(described)), wanted, strict=True):
        assert len(found["scores"]) == 40
        assert len(found["labels"].unique()) > 1
        for key in ("boxes", "labels", "scores"):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-6, atol=1e-4 if key == "boxes" else 0)


def test_detections_by_hand():
    """Two levels, of which each keeps one candidate; what overlaps goes, in one class alone."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 10, 8]]])
    scores = torch.tensor([[[0.9, 0.1], [0.8, 0.7], [0.2, 0.3], [0.6, 0.05]]])
    levels = torch.tensor([0, 0, 1, 1])

    def chosen(*arguments):
        (found,) = detections(boxes, scores, levels, *arguments)
        return [(label, round(score, 2)) for label, score in zip(found["labels"].tolist(), found["scores"].tolist())]

    assert chosen(0.05, 10, 0.5, 10) == [(1, 0.9), (2, 0.7), (2, 0.3), (1, 0.2)]
    assert chosen(0.05, 1, 0.5, 10) == [(1, 0.9)]  # the other level's is the box of the same class with 0.6
    assert chosen(0.05, 2, 0.5, 10) == [(1, 0.9), (2, 0.3)]
    assert chosen(0.05, 10, 0.95, 3) == [(1, 0.9), (1, 0.8), (2, 0.7)]
    assert chosen(0.95, 10, 0.5, 10) == []
    with pytest.raises(InputError, match=r"boxes, scores, levels: got the shapes \(1, 4, 4\), \(1, 4, 2\), \(3,\)"):
        detections(boxes, scores, levels[:3], 0.05, 10, 0.5, 10)


@pytest.mark.timeout(600)
@pytest.mark.long
@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_detectors(kind, tmp_path):
    """One file for all sizes; with what it says of itself, the detections are those of the model on whole images."""
    model = build(kind)
    result = metala_vision.export(model, tmp_path / "m.onnx")
    assert result["outputs"] == ["boxes", "scores", "levels"]
    assert set(result["differences"]) == set(NAMES)
    assert_equal_at_all_sizes(result["file"], dense_graph(model, {})[0])
    written = onnx.load(result["file"])
    assert {node.domain for node in written.graph.node} == {""}
    (image,) = written.graph.input
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["batch", 3, "height", "width"]
    described = json.loads(runtime("onnxruntime", result["file"]).metadata)
    for name in NAMES:
        run = runtime(name, result["file"], threads=2)
        sizes = (described["min_size"], described["max_size"])
        resize = GeneralizedRCNNTransform(*sizes, described["mean"], described["std"], size_divisible=1).eval()
        for size in [(61, 120), (200, 77)]:
            image = images_of(1, *size)[0]
            with torch.no_grad():
                wanted = model([image])
            resized, _ = resize([image])
            found = detections(*run(resized.tensors), **choice(described))
            (found,) = resize.postprocess(found, resized.image_sizes, [size])
            assert_same(found, wanted[0], pixels=0.02)


@pytest.mark.timeout(600)
@pytest.mark.long
@pytest.mark.parametrize("kind", DECODERS)
def test_segmenters(kind, tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    backbone = dict(SMALL, depth=4)
    model = segmenter(kind, "metala_vit_nano", 3, 16, backbone, **DECODERS[kind])
    model = strong(model, 0.05)
    result = metala_vision.export(model, tmp_path / "m.onnx")
    assert result["outputs"] == ["logits"]
    described = json.loads(runtime("onnxruntime", result["file"]).metadata)
    assert (described["task"], described["kind"], described["num_classes"]) == ("segmentation", kind, 3)
    assert_equal_at_all_sizes(result["file"], model, shift=0.5)


def checkpoint_of(task: str, model: nn.Module, kind: str, file, **more) -> None:
    """As a run leaves it; the description says what a run's would."""
    described = dict(
        task=task,
        kind=kind,
        architecture="metala_vit_nano",
        model_args=SMALL,
        num_classes=2,
        label_names=["cat", "dog"],
        input_size=[3, 64, 96],
        crop_pct=None,
        interpolation="bilinear",
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.25, 0.3],
    )
    torch.save({"state_dict": model.state_dict(), "description": {**described, **more}}, file)


@pytest.fixture
def fcos_checkpoint(tmp_path):
    options = dict(OPTIONS, min_size=(64, 96), score_thresh=0.1, nms_thresh=0.4)
    model = build("fcos", 2, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3], **options)
    checkpoint_of("detection", model, "fcos", tmp_path / "best.pth", options=options)
    return tmp_path / "best.pth", model


def test_a_checkpoint_of_a_detector(fcos_checkpoint):
    """Its own normalisation is in the graph, so that nobody does it twice, and the last of several sizes counts."""
    file, model = fcos_checkpoint
    graph, described = model_of(file)
    expected = dict(task="detection", kind="fcos", num_classes=2, label_names=["cat", "dog"], mean=[0, 0, 0])
    expected |= dict(std=[1, 1, 1], min_size=96, max_size=150, score_thresh=0.1, topk_candidates=60, nms_thresh=0.4)
    expected |= dict(detections_per_img=40, interpolation="bilinear", input_size=[3, 64, 96])
    assert {key: described[key] for key in expected} == expected
    images = images_of(1, 96, 150)
    with torch.no_grad():
        (wanted,) = model(list(images))
        assert_same(detections(*graph(images), **choice(described))[0], wanted, pixels=1e-3)


@pytest.mark.long
def test_a_file_of_one_size_from_a_checkpoint(fcos_checkpoint, tmp_path, load_tool, capsys):
    """By the tool: nothing is left open, the levels have become a constant."""
    file, _ = fcos_checkpoint
    out = tmp_path / "m.onnx"
    result = load_tool("export.py")(str(file), "--out", str(out), "--dynamic", "--img-size", "70x101")
    assert result["outputs"] == ["boxes", "scores", "levels"]
    assert "onnxruntime: largest difference" in capsys.readouterr().out
    described = json.loads(runtime("onnxruntime", out).metadata)
    assert described["label_names"] == ["cat", "dog"]
    assert described["input_size"] == [3, 70, 101]


def test_a_checkpoint_of_a_segmenter(tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    model = strong(segmenter("fpn", "metala_vit_nano", 2, 16, SMALL, **DECODERS["fpn"]), 0.05)
    windows = dict(short_side=64, window=48, stride=32)
    options = dict(out_channels=16, **DECODERS["fpn"])
    checkpoint_of("segmentation", model, "fpn", tmp_path / "best.pth", options=options, **windows)
    found, described = model_of(tmp_path / "best.pth")
    assert described["mean"] == [0.5, 0.4, 0.3]
    assert {key: described[key] for key in windows} == windows
    x = images_of(1, 70, 101)
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x))
    with pytest.raises(InputError, match="arguments: got features_only for a fpn, which takes none"):
        model_of(tmp_path / "best.pth", features_only=True)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_detectors_of_two_stages_are_refused(kind, tmp_path):
    model = detector(kind, "metala_vit_nano", 2, backbone_arguments=SMALL, out_channels=32).eval()
    checkpoint_of("detection", model, kind, tmp_path / "best.pth", options=dict(out_channels=32))
    for source in (model, tmp_path / "best.pth"):
        with pytest.raises(InputError, match=f"source: a {kind} .*: retinanet, fcos"):
            metala_vision.export(source, tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["best.pth"]


def test_a_detector_in_training_mode(tmp_path):
    with pytest.raises(InputError, match="source: the model is in training mode"):
        metala_vision.export(build("fcos").train(), tmp_path / "m.onnx")
