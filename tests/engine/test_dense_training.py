"""Detectors and segmenters through the runner: they train, resume, report, and say what does not fit."""

import csv
import json
import logging

import pytest
import timm
import torch
from mmengine.config import Config
from PIL import Image
from sinks import check_sinks
from small_runs import ROOT, assert_same_checkpoint

from metala_vision.engine import VisionRunner, apply_test_options, apply_train_options, load_config
from metala_vision.engine.browse import browse
from metala_vision.engine.dry_run import describe, dry_run
from metala_vision.engine.evaluation import evaluate_checkpoints, render
from metala_vision.errors import InputError

pytest.importorskip("pycocotools")
pytest.importorskip("segmentation_models_pytorch")
SHAPES = {
    "detection": ROOT / "configs/shapes/mask_rcnn_metala_vit_nano_p8_128_shapes_6e.py",
    "segmentation": ROOT / "configs/shapes/upernet_metala_vit_nano_p8_128_shapes_6e.py",
}
SMALL = {
    "model.backbone.embed_dim": 32,
    "model.backbone.depth": 2,
    "model.backbone.num_heads": 1,
    "model.out_channels": 16,
    "train_dataloader.batch_size": 4,
    "train_dataloader.dataset.images": 12,
    "train_dataloader.dataset.size": 64,
    "val_dataloader.dataset.images": 5,
    "val_dataloader.dataset.size": 64,
    "test_dataloader.dataset.images": 5,
    "test_dataloader.dataset.size": 64,
    "optim_wrapper.optimizer.lr": 1e-3,
    "train_cfg.max_epochs": 2,
    "train_cfg.val_interval": 1,
    "param_scheduler.1.end": 2,
}
TASKS = tuple(SHAPES)
# What a run does with any task: a segmenter's steps take a third of a detector's
CHEAP_FIRST = [pytest.param(task, marks=[] if task == "segmentation" else pytest.mark.slow) for task in TASKS]
CROP = dict(type="CenterCrop", height=48, width=40)


@pytest.fixture
def config_of(tmp_path, request):
    """Makes configs: config_of(task, options, **train options)."""
    made = []

    def make(task: str, options: dict | None = None, **train_options) -> Config:
        own = {"model.min_size": 64, "model.max_size": 64} if task == "detection" else {"model.decoder_channels": 16}
        config = load_config(str(SHAPES[task]), {**SMALL, **own, **(options or {})})
        apply_train_options(config, **{"work_dir": str(tmp_path / "run"), **train_options})
        made.append(config)
        config.experiment_name = f"{request.node.nodeid}_{len(made)}"
        return config

    return make


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_a_run_leaves_its_results(task, config_of, tmp_path, capsys):
    config = config_of(task)
    runner = VisionRunner.from_cfg(config)
    result = runner.train_and_test()
    folder = tmp_path / "run"
    check_sinks(folder, capsys.readouterr().out)
    assert result["images"] == 5
    score = "mAP50" if task == "detection" else "mIoU"
    assert 0 <= result[score] <= 1
    for name in ("last.pth", "best.pth", "history.json", "curves.png", "per_class.csv"):
        assert (folder / name).is_file(), name
    assert len(list((folder / "pictures").glob("*.png"))) == 5
    with Image.open(folder / "pictures" / "00000.png") as picture:
        assert picture.size[0] > 2 * 480
    rows = list(csv.DictReader((folder / "per_class.csv").read_text().splitlines()))
    assert [row["class"] for row in rows][-3:] == ["disc", "rectangle", "triangle"]
    checkpoint = torch.load(folder / "last.pth", weights_only=True)
    assert set(checkpoint["state_dict"]) == set(runner.task.net.state_dict()), "by their names in the detector itself"
    if task == "detection":
        predictions = json.loads((folder / "predictions.json").read_text())
        assert all({"image_id", "category_id", "bbox", "score", "segmentation"} <= set(p) for p in predictions)
        assert "mask_mAP" in result


@pytest.mark.long
@pytest.mark.parametrize("task", CHEAP_FIRST)
def test_a_tested_checkpoint_has_the_scores_of_its_run(task, config_of, tmp_path):
    result = VisionRunner.from_cfg(config_of(task, ema=0.9)).train_and_test()
    assert result["weights"] == "ema"
    config = config_of(task, work_dir=str(tmp_path / "other"))
    best = str(tmp_path / "run" / "best.pth")
    (tested,) = evaluate_checkpoints(config, [best], str(tmp_path / "test"))
    score = "mAP" if task == "detection" else "mIoU"
    assert tested[score] == pytest.approx(result[score], abs=1e-3)
    assert f"{tested[score]:.3f}" in render([tested])
    both = evaluate_checkpoints(config, [best, str(tmp_path / "run" / "last.pth")], str(tmp_path / "both"))
    assert [r["checkpoint"] for r in both] == [best, str(tmp_path / "run" / "last.pth")]
    assert (tmp_path / "both" / "last" / "per_class.csv").is_file()
    with pytest.raises(InputError, match="--img-size: the test transform of the config has no img_size"):
        apply_test_options(config_of(task, work_dir=str(tmp_path / "y")), best, img_size=64)


@pytest.mark.long
@pytest.mark.parametrize("task", CHEAP_FIRST)
def test_a_resumed_run_is_the_same(task, config_of, tmp_path):
    VisionRunner.from_cfg(config_of(task, ema=0.9, work_dir=str(tmp_path / "straight"))).train_and_test()
    halted = VisionRunner.from_cfg(config_of(task, ema=0.9))

    class Stop(Exception):
        pass

    def stop(*args, **kwargs):
        raise Stop

    halted.prepare()
    halted.train_loop.run_iter, run_iter = stop, halted.train_loop.run_iter
    steps = len(halted.train_dataloader)
    calls = []

    def until_second_epoch(*args, **kwargs):
        calls.append(1)
        return stop() if len(calls) > steps + 1 else run_iter(*args, **kwargs)

    halted.train_loop.run_iter = until_second_epoch
    with pytest.raises(Stop):
        halted.train()
    resumed = VisionRunner.from_cfg(config_of(task, ema=0.9, resume="auto"))
    resumed.train_and_test()
    assert resumed.epoch == 2
    assert_same_checkpoint(tmp_path / "straight" / "last.pth", tmp_path / "run" / "last.pth")


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_dry_run(task, config_of):
    config = config_of(task, {"auto_scale_lr": dict(enable=True, base_batch_size=8)})
    result = dry_run(VisionRunner.from_cfg(config))
    assert result["images_per_step"] == 4
    assert result["lr"] == pytest.approx(5e-4, rel=0.02)
    assert "metala_vit_nano" in describe(result)


@pytest.mark.parametrize("task", TASKS)
def test_layer_decay_leaves_what_stands_on_the_trunk_alone(task, config_of):
    runner = VisionRunner.from_cfg(config_of(task, {"optim_wrapper.paramwise_cfg": dict(layer_decay=0.5)}))
    runner.prepare()
    groups = runner.optim_wrapper.optimizer.param_groups
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    trunk, net = runner.task.trunk, runner.task.net
    assert set(rate) == {id(p) for p in net.parameters()}, "each parameter once"
    own = {id(p) for p in trunk.parameters()}
    assert {rate[id(p)][0] for p in net.parameters() if id(p) not in own} == {1e-3}
    shared = [trunk.patch_embed.proj.weight, *(block.mlp.fc1.weight for block in trunk.blocks)]
    assert [rate[id(p)][0] for p in shared] == pytest.approx([0.25e-3, 0.5e-3, 1e-3])
    assert {rate[id(p)][1] for p in net.parameters() if p.ndim == 1} == {0.0}
    assert rate[id(trunk.blocks[0].mixer.out_proj.weight)][1] == 0.05


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("detection", {"model.num_classes": 5}, "num_classes is 5, but ShapesDetection .train. has 3 classes"),
        ("segmentation", {"model.num_classes": 3}, "num_classes is 3, but ShapesSegmentation .train. has 4 classes"),
        ("detection", {"model.kind": "mask_rccn"}, "model.kind: got 'mask_rccn'"),
        ("segmentation", {"model.kind": "uper"}, "model.kind: got 'uper'"),
        ("detection", {"model.backbone.model_name": "metala_nano"}, "backbone: unknown model 'metala_nano'"),
        ("detection", {"model.box_score_treshold": 0.5}, "box_score_treshold"),
        ("segmentation", {"model.window": 8}, "model.window: got 8"),
        ("segmentation", {"model.stride": 8}, "model.stride: got 8"),
        ("segmentation", {"model.short_side": 8}, "model.short_side: got 8"),
        ("detection", {"test_evaluator.pictures": -1}, "pictures: got -1"),
        ("detection", {"model.init_from": "none.pth"}, "model.init_from: no file none.pth; .*=None"),
        ("detection", {"train_dataloader.dataset.type": "ShapesSegmentation"}, "has no boxes; expected VOCDetection"),
        ("segmentation", {"train_dataloader.dataset.type": "ShapesDetection"}, "has no masks; expected MaskFolder"),
        (
            "detection",
            {"test_dataloader.dataset.transform": dict(type="BoxTransform", transforms=[CROP])},
            r"ShapesDetection .test. makes .48, 40. of .64, 64. pixels",
        ),
    ],
)
def test_what_does_not_fit(task, options, message, config_of):
    with pytest.raises(InputError, match=message):
        VisionRunner.from_cfg(config_of(task, options)).prepare()


@pytest.mark.parametrize("kind", ["mask_rcnn", "upernet", "dpt"])
def test_it_starts_from_a_classifier(kind, config_of, tmp_path):
    sizes = dict(patch_size=8, embed_dim=32, depth=4, num_heads=1)
    model = timm.create_model("metala_vit_nano", num_classes=7, **sizes)
    torch.save(model.state_dict(), tmp_path / "classifier.pth")
    config = config_of("detection" if kind == "mask_rcnn" else "segmentation", {"model.backbone.depth": 4})
    config.model.init_from = str(tmp_path / "classifier.pth")
    if kind == "dpt":
        config.model.kind = kind
        config.model.pop("decoder_channels")
        config.model.intermediate_channels = (16, 16, 16, 16)
    trunk = VisionRunner.from_cfg(config).task.trunk
    weights = model.state_dict()
    assert len(trunk.state_dict()) > 20
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_no_image_of_a_batch_is_readable(config_of):
    """The loss is zero with zero gradients, so that all processes of a run take the step together."""
    for task in TASKS:
        model = VisionRunner.from_cfg(config_of(task)).task.train()
        loss = model([], [], mode="loss") if task == "detection" else model([], [], [], mode="loss")
        assert loss["loss"].item() == 0
        loss["loss"].backward()
        assert all(p.grad is not None and not p.grad.any() for p in model.net.parameters())


def test_a_single_image_is_enough_for_a_segmenter(config_of):
    """UPerNet normalises a map of one pixel, and the last batch of an epoch, or what is readable of one, may be one."""
    model = VisionRunner.from_cfg(config_of("segmentation")).task.train()
    image, mask = torch.rand(3, 64, 64), torch.zeros(64, 64, dtype=torch.long)
    torch.manual_seed(0)
    one = model([image], [mask], [0], mode="loss")["loss"]
    torch.manual_seed(0)
    two = model([image] * 2, [mask] * 2, [0, 0], mode="loss")["loss"]
    assert one.item() == pytest.approx(two.item(), rel=1e-5)
    one.backward()


@pytest.mark.parametrize("task", TASKS)
def test_browse(task, config_of, tmp_path):
    """The picture has what is to be learned drawn into it."""
    result = browse(config_of(task), "train", tmp_path / "batch.png", images=6)
    assert result["images"] == 6
    assert result["shape"] == [3, 64, 64]
    with Image.open(tmp_path / "batch.png") as picture:
        assert picture.size[0] > 4 * 300


def test_masks_are_asked_for(config_of, monkeypatch):
    from metala_vision.data import BoxDataset

    monkeypatch.setattr(BoxDataset, "has_masks", False)
    with pytest.raises(InputError, match="has no masks, which mask_rcnn learns"):
        VisionRunner.from_cfg(config_of("detection")).prepare()


@pytest.mark.long
def test_unreadable_images_are_counted(config_of, monkeypatch, caplog):
    from metala_vision.data import ShapesDetection, UnreadableImageError

    load = ShapesDetection.load

    def broken(self, index):
        if index == 1:
            raise UnreadableImageError("drawing 1: torn")
        return load(self, index)

    monkeypatch.setattr(ShapesDetection, "load", broken)
    config = config_of("detection", {"default_hooks.unreadable.max_share": 0.3, "train_cfg.max_epochs": 1})
    with caplog.at_level(logging.WARNING):
        result = VisionRunner.from_cfg(config).train_and_test()
    assert result["unreadable"] == {"train": 1, "val": 1, "test": 1}
    assert result["images"] == 4


@pytest.mark.long
@pytest.mark.parametrize(
    "kind",
    [
        "mask_rcnn",
        "upernet",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("faster_rcnn", "retinanet", "fcos", "segformer")),
    ],
)
def test_bfloat16(kind, config_of):
    """One epoch in mixed precision: finite losses, and detections in float32."""
    task = "detection" if kind not in ("upernet", "segformer") else "segmentation"
    options = {"train_cfg.max_epochs": 1, "model.kind": kind}
    config = config_of(task, options, amp="bfloat16", grad_checkpointing=True)
    if kind in ("retinanet", "fcos"):
        for key in [k for k in config.model if k.startswith(("rpn", "box")) or k == "anchor_scale"]:
            config.model.pop(key)
        config.model.update(out_channels=32, strides=(8, 16))
    if kind == "faster_rcnn":
        config.model.kind = kind
    if kind == "segformer":
        config.model.segmentation_channels = config.model.pop("decoder_channels")
    result = VisionRunner.from_cfg(config).train_and_test()
    assert result["precision"] == "bfloat16"
    assert result["images"] == 5
