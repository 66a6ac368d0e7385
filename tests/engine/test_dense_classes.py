"""Classes of detectors and segmenters by name, and what their checkpoints say of themselves."""

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS
from small_runs import ROOT
from torch.nn import functional as F

from metala_vision.data import ShapesDetection, ShapesSegmentation
from metala_vision.data.masks import IGNORE
from metala_vision.dense import load_dense
from metala_vision.description import KEY, description_in
from metala_vision.engine import VisionRunner, apply_train_options, load_config
from metala_vision.engine.evaluation import evaluate_checkpoints
from metala_vision.errors import InputError

pytest.importorskip("pycocotools")
pytest.importorskip("segmentation_models_pytorch")
CONFIGS = {
    "detection": ROOT / "configs/shapes/mask_rcnn_metala_vit_nano_p8_128_shapes_6e.py",
    "segmentation": ROOT / "configs/shapes/upernet_metala_vit_nano_p8_128_shapes_6e.py",
}
SMALL = {
    "model.backbone.embed_dim": 32,
    "model.backbone.depth": 2,
    "model.backbone.num_heads": 1,
    "model.out_channels": 16,
    "train_dataloader.batch_size": 4,
    **{f"{part}_dataloader.dataset.size": 64 for part in ("train", "val", "test")},
    **{f"{part}_dataloader.dataset.images": 4 for part in ("train", "val", "test")},
    "test_evaluator.pictures": 0,
}
OWN = {"detection": {"model.min_size": 96, "model.max_size": 96}, "segmentation": {"model.decoder_channels": 16}}
ORDER = {"detection": (2, 0, 1), "segmentation": (3, 1, 0, 2)}


@DATASETS.register_module()
class RenamedShapesDetection(ShapesDetection):
    """The shapes with the names of their classes in another order, or other names."""

    def __init__(self, order=(0, 1, 2), names=None, **arguments):
        super().__init__(**arguments)
        self.classes = tuple(names or (self.classes[i] for i in order))
        new = 1 + np.argsort(order)
        self.objects = [found._replace(labels=new[found.labels - 1]) for found in self.objects]


@DATASETS.register_module()
class RenamedShapesSegmentation(ShapesSegmentation):
    """The same of their pixels."""

    def __init__(self, order=(0, 1, 2, 3), names=None, **arguments):
        super().__init__(**arguments)
        self.classes, self.new = tuple(names or (self.classes[i] for i in order)), np.argsort(order).astype(np.uint8)

    def load(self, index):
        image, mask = super().load(index)
        return image, np.where(mask == IGNORE, IGNORE, self.new[np.minimum(mask, 3)]).astype(np.uint8)


def config_of(task: str, options: dict | None = None):
    return load_config(str(CONFIGS[task]), {**SMALL, **OWN[task], **(options or {})})


def renamed(task: str, **arguments) -> dict:
    kind = "RenamedShapes" + task.capitalize()
    return {"test_dataloader.dataset.type": kind} | {
        f"test_dataloader.dataset.{key}": value for key, value in arguments.items()
    }


@pytest.fixture
def all_knowing(monkeypatch, tmp_path):
    """Makes a checkpoint of a model whose answers are the truth, whatever its weights: all_knowing(task) -> file."""

    def make(task: str):
        config = config_of(task)
        kind = ShapesDetection if task == "detection" else ShapesSegmentation
        data = kind(split="test", images=4, size=64)
        model = VisionRunner.from_cfg(_for_training(config, tmp_path / "model")).task
        asked = iter(range(10**6))

        def detect(self, images, targets=None):
            truth = [data[next(asked) % 4]["target"] for _ in images]
            return [
                dict(
                    **{key: one[key] for key in ("boxes", "labels")},
                    scores=torch.ones(len(one["labels"])),
                    masks=one["masks"][:, None].float(),
                )
                for one in truth
            ]

        def segment(self, x):
            return F.one_hot(data[next(asked) % 4]["mask"].clamp(max=3), 4).permute(2, 0, 1)[None].float()

        monkeypatch.setattr(type(model.net), "forward", detect if task == "detection" else segment)
        file = tmp_path / "known.pth"
        described = dict(task=task, num_classes=len(data.classes), label_names=list(data.classes))
        described |= dict(input_size=[3, 64, 64], interpolation=None, mean=[0.5] * 3, std=[0.2] * 3)
        torch.save({"state_dict": model.net.state_dict(), KEY: described}, file)
        return file

    return make


def _for_training(config, folder):
    apply_train_options(config, work_dir=str(folder), device="cpu")
    config.visualizer = None
    config.experiment_name = str(folder)  # mmengine's own names are unique to the second only
    return config


@pytest.mark.parametrize("task", CONFIGS)
def test_a_test_set_in_another_order(task, all_knowing, tmp_path):
    """Catches detections and pixels that are counted for the class that has their number, and not their name."""
    file, scores = all_knowing(task), ("mAP", "mask_mAP") if task == "detection" else ("mIoU",)
    for name, options in (("straight", {}), ("shuffled", renamed(task, order=ORDER[task]))):
        (result,) = evaluate_checkpoints(config_of(task, options), [str(file)], str(tmp_path / name), device="cpu")
        assert [result[score] for score in scores] == pytest.approx([1.0] * len(scores)), name
    tables = [sorted((tmp_path / name / "per_class.csv").read_text().splitlines()) for name in ("straight", "shuffled")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("task", CONFIGS)
def test_a_test_set_of_other_classes_or_without_names(task, all_knowing, tmp_path):
    """Catches scores of classes that the model was never taught, and a bare state_dict that is refused."""
    file = all_knowing(task)
    names = ["disc", "rectangle", "star"] if task == "detection" else ["background", "disc", "rectangle", "star"]
    with pytest.raises(InputError, match="missing: triangle; unknown: star"):
        evaluate_checkpoints(config_of(task, renamed(task, names=names)), [str(file)], str(tmp_path / "x"))
    content = torch.load(file, weights_only=True)
    torch.save(content["state_dict"], file)
    (result,) = evaluate_checkpoints(config_of(task), [str(file)], str(tmp_path / "bare"), device="cpu")
    assert result["mAP" if task == "detection" else "mIoU"] == pytest.approx(1.0)


def saved(task, folder) -> VisionRunner:
    """A runner that has saved x.pth, of a model with a normalisation of its own."""
    runner = VisionRunner.from_cfg(_for_training(config_of(task, {"model.std": (0.2, 0.3, 0.4)}), folder / "run"))
    runner.prepare()
    runner.save_checkpoint(str(folder), "x.pth", save_param_scheduler=False)
    return runner


@pytest.mark.parametrize("task", CONFIGS)
def test_a_checkpoint_describes_itself(task, tmp_path):
    """Catches a checkpoint of boxes or pixels whose reader has to guess classes, normalisation or tokens."""
    runner = saved(task, tmp_path)
    described = description_in(tmp_path / "x.pth")
    shapes = ["disc", "rectangle", "triangle"]
    assert described["label_names"] == (shapes if task == "detection" else ["background", *shapes])
    assert described["std"] == [0.2, 0.3, 0.4]
    assert described["architecture"] == "metala_vit_nano"
    assert (described["task"], described["kind"]) == (task, runner.cfg.model.kind)
    if task == "detection":
        assert described["options"]["strides"] == [4, 8, 16]
        assert (described["input_size"], described["grid"]) == ([3, 96, 96], [12, 12]), "resized to min_size"
        assert described["interpolation"] == "bilinear"
    else:
        assert (described["input_size"], described["grid"]) == ([3, 64, 64], [8, 8])
        assert (described["short_side"], described["window"], described["interpolation"]) == (None, None, None)


@pytest.mark.parametrize("task", CONFIGS)
def test_a_checkpoint_becomes_its_model(task, tmp_path):
    """Catches a detector or segmenter that is made anew with other settings than it was trained with."""
    runner = saved(task, tmp_path)
    model, described = load_dense(tmp_path / "x.pth")
    net = runner.task.net.eval()
    assert not model.training
    image = torch.rand(3, 64, 80)
    with torch.inference_mode():
        if task == "detection":
            (found,), (expected,) = model([image]), net([image])
            assert len(found["boxes"]) > 0
            assert all(torch.equal(found[key], expected[key]) for key in expected)
            assert model.transform.image_std == [0.2, 0.3, 0.4]
        else:
            assert torch.equal(model(image[None]), net(image[None]))
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    averaged = {key: value + 1 for key, value in content["state_dict"].items()}
    torch.save({**content, "state_dict_ema": averaged}, tmp_path / "x.pth")
    again, _ = load_dense(tmp_path / "x.pth")
    assert all(torch.equal(value, averaged[key]) for key, value in again.state_dict().items())
    torch.save(content["state_dict"], tmp_path / "bare.pth")
    with pytest.raises(InputError, match="bare.pth is of the task None, expected a detector's or a segmenter's"):
        load_dense(tmp_path / "bare.pth")
    with pytest.raises(InputError, match="no file none.pth"):
        load_dense("none.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:5000])
    with pytest.raises(InputError, match="half.pth is no checkpoint that can be read"):
        load_dense(tmp_path / "half.pth")


def test_mere_numbers_are_no_names(tmp_path, monkeypatch):
    """Catches masks whose classes are known by their number alone, and then held against names."""
    monkeypatch.setattr(ShapesSegmentation, "named", False)
    runner = VisionRunner.from_cfg(_for_training(config_of("segmentation"), tmp_path / "run"))
    runner.prepare()
    assert runner.description["label_names"] is None


@pytest.mark.parametrize("task", CONFIGS)
def test_images_come_alone(task):
    """Catches predictions that are refused, or lost, where nobody says what is to be seen."""
    model = MODELS.build(config_of(task).model).eval()
    found = model([torch.rand(3, 64, 64)] * 2, mode="predict")
    assert [one["target" if task == "detection" else "mask"] for one in found] == [None, None]
