"""Training at several image sizes, and testing at sizes that are not square."""

import json

import pytest
import torch
from mmengine.runner import Runner
from small_runs import ARGS, OWN_DATA, ROOT, assert_same_checkpoint, prepare

from metala_vision.engine import apply_train_options, load_config
from metala_vision.engine.dry_run import describe, dry_run
from metala_vision.errors import InputError

CROPS = {
    "train_dataloader.dataset.transform": dict(type="TrainTransform", img_size=8, scale=(0.5, 1.0), _delete_=True),
}


@pytest.fixture
def seen(monkeypatch):
    """The shape of the images of every training step."""
    shapes = []
    whole = Runner.call_hook

    def note(self, name, **kwargs):
        if name == "before_train_iter":
            shapes.append((self.epoch, *kwargs["data_batch"]["inputs"].shape))
        whole(self, name, **kwargs)

    monkeypatch.setattr(Runner, "call_hook", note)
    return shapes


def test_multi_scale_run(run_small, seen, tmp_path):
    """The model gets every size, schedules end with the run, and what is told of it is of the config's own size."""
    runner, result = run_small(CROPS, multi_scale=[6, 8, 12], equal_tokens=True)
    images = {6: 455, 8: 256, 12: 114}
    assert {shape[3] for shape in seen} == set(images)
    assert all(shape[1] <= images[shape[3]] and shape[3] == shape[4] for shape in seen)
    assert sum(shape[1] for shape in seen if shape[0] == 0) == len(runner.train_dataloader.dataset)
    assert len(seen) == runner.iter == runner.max_iters
    assert runner.param_schedulers[1].end == runner.max_iters
    assert runner.description["input_size"] == [1, 8, 8]
    assert result["images"] == 359
    assert runner.step_images() == (256, 1, 1)


@pytest.mark.long
def test_resumed_run_is_the_same(run_small, tmp_path):
    """Catches sizes that depend on how far a process has come; the options need not be repeated."""
    options = {**CROPS, "train_cfg.max_epochs": 3, "param_scheduler.1.end": 3}
    run_small(options, work_dir=str(tmp_path / "straight"), multi_scale=[6, 8, 12])
    sizes = dict(multi_scale=[6, 8, 12])
    run_small({**options, "train_cfg.max_epochs": 2}, work_dir=str(tmp_path / "halted"), **sizes)
    run_small(options, work_dir=str(tmp_path / "halted"), resume="auto")
    assert_same_checkpoint(tmp_path / "straight" / "last.pth", tmp_path / "halted" / "last.pth")
    with pytest.raises(InputError, match=r"--curriculum: got .*\[6, 8\].*, but the run of .*12\].*leave"):
        run_small(options, work_dir=str(tmp_path / "halted"), resume="auto", multi_scale=[6, 8])


def test_single_size_does_not_go_on_with_several(run_small):
    run_small({**CROPS, "train_cfg.max_epochs": 1})
    with pytest.raises(InputError, match="--multi-scale, --curriculum: .* has one image size; leave it out"):
        run_small(CROPS, resume="auto", curriculum=[6, 8])


def test_curriculum_run(run_small, seen):
    run_small({**CROPS, "train_cfg.max_epochs": 3, "param_scheduler.1.end": 3}, curriculum=[6, 8])
    assert sorted({(shape[0], shape[3]) for shape in seen}) == [(0, 6), (1, 6), (2, 8)]


def test_dry_run_times_each_size(small_config):
    runner = prepare(small_config(CROPS, multi_scale=[6, 12], equal_tokens=True))
    result = dry_run(runner)
    sizes = result["sizes"]
    assert {size: pace["images"] for size, pace in sizes.items()} == {6: 455, 12: 114}
    assert sum(pace["steps"] for pace in sizes.values()) == runner.max_iters
    mean = sum(pace["steps"] * pace["seconds"] for pace in sizes.values()) / runner.max_iters
    assert result["seconds_per_batch_model"] == pytest.approx(mean, abs=1e-3)
    assert result["input"] == [1, 12, 12]
    assert "12 pixels: 114 images a batch, " in describe(result)
    json.dumps(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(multi_scale=[8], curriculum=[8]), "--curriculum: give it or --multi-scale, not both"),
        (dict(multi_scale=[]), r"--multi-scale: got \[\], expected sides of images in pixels"),
        (dict(multi_scale=[8, -1]), r"--multi-scale: got \[8, -1\]"),
        (dict(curriculum=[0]), r"--curriculum: got \[0\]"),
        (dict(curriculum=[6, 8, 10]), "--curriculum: got 3 sizes for 2 epochs, expected no more than epochs"),
        (dict(curriculum=[6, 8], equal_tokens=True), "--equal-tokens: the epochs of a curriculum have equally many"),
        (dict(equal_tokens=True), "--equal-tokens: give it with --multi-scale"),
    ],
)
def test_options(small_config, options, message):
    with pytest.raises(InputError, match=message):
        small_config(CROPS, **options)


def test_transform_without_a_size(small_config):
    with pytest.raises(InputError, match="--curriculum: the train transform of the config has no img_size; use Train"):
        small_config(curriculum=[6, 8])


@pytest.mark.parametrize("path", [path for path in OWN_DATA if "imagefolder" not in path][:2])
def test_dense_tasks_say_that_they_have_sizes_of_their_own(path):
    config = load_config(str(ROOT / path))
    with pytest.raises(InputError, match="--multi-scale: a .* is trained at several sizes by settings of its own"):
        apply_train_options(config, multi_scale=[320, 480])


def test_model_of_one_size_is_refused_at_once(small_config):
    """Catches a run that dies at its first batch of another size; timm says how the model can take it."""
    vit = {key: value for key, value in ARGS.items() if key not in ("patch_size", "img_size")}
    vit = dict(model_name="vit_tiny_patch16_224", num_classes=10, img_size=8, patch_size=4, **vit)
    options = {f"model.backbone.{key}": value for key, value in vit.items()}
    with pytest.raises(InputError, match=r"vit_tiny_patch16_224 takes no images of 12 pixels: .*dynamic_img_size=True"):
        prepare(small_config({**CROPS, **options}, multi_scale=[8, 12]))
    prepare(small_config({**CROPS, **options, "model.backbone.dynamic_img_size": True}, multi_scale=[8, 12]))


def test_checking_sizes_leaves_no_trace(small_config):
    """Catches a check that changes buffers, gradients or the mode of the model."""
    runner = prepare(small_config(CROPS, multi_scale=[8, 12]))
    before = {key: value.clone() for key, value in runner.task.state_dict().items()}
    runner.task.train()
    runner.task.check_sizes([6, 16])
    assert all(torch.equal(value, before[key]) for key, value in runner.task.state_dict().items())
    assert all(p.grad is None for p in runner.task.parameters())
    assert runner.task.backbone.training
