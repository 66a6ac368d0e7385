"""Bad input that training can meet: a clear error before the first step, and nothing lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import DIGITS, ROOT, SMALL, prepare
from tool_process import run_tool

from metala_vision.engine import (
    VisionRunner,
    apply_test_options,
    apply_train_options,
    load_config,
    set_data_root,
)
from metala_vision.engine.run.hooks import UnreadableImagesHook
from metala_vision.errors import InputError

TRANSFORMS = "train_dataloader.dataset.transform.transforms"


@pytest.fixture
def images(tmp_path):
    """An image folder of two classes, 30 JPEG files each."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(
                tmp_path / "images" / label / f"{i:02}.jpg"
            )
    return tmp_path / "images"


@pytest.fixture
def folder_config(images, small_config):
    """A small run on the image folder."""

    def make(options: dict | None = None, **train_options):
        config = small_config(
            {
                "model.backbone.num_classes": 2,
                "model.backbone.in_chans": 3,
                "model.mean": (0.5,) * 3,
                "model.std": (0.25,) * 3,
                **{f"{part}_dataloader.batch_size": 8 for part in ("train", "val", "test")},
                "train_cfg.max_epochs": 1,
                **(options or {}),
            },
            **train_options,
        )
        for part in ("train", "val", "test"):
            config[f"{part}_dataloader"].dataset = dict(
                type="ImageFolder", root=str(images), split=part, transform=dict(type="EvalTransform", img_size=16)
            )
        return config

    return make


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.backbone.model_name": "metala_vit_smal"}, "unknown model_name 'metala_vit_smal'.*metala_vit_small"),
        ({"model.backbone.drop_pth_rate": 0.1}, "unexpected keyword argument 'drop_pth_rate'"),
        ({"model.backbone.scan": "zigzag"}, "scan: got 'zigzag'"),
        ({"model.label_smothing": 0.1}, "label_smothing"),
        ({"model.type": "ImageClasifier"}, "ImageClasifier is not in the"),
        ({"model.backbone.in_chans": 3}, "mean has 1 and std 1 channels, expected 3"),
        (
            {"model.backbone.in_chans": 3, "model.mean": (0.5,) * 3, "model.std": (0.5,) * 3},
            "in_chans is 3, but the",
        ),
        (
            {"model.backbone.num_classes": 7},
            "num_classes is 7, but Digits .train. has 10 classes .0, 1, .*give --num-classes 10",
        ),
        ({"model.backbone.num_classes": 11}, "num_classes is 11.*set model.backbone.num_classes=10"),
        (
            {"model.distillation": dict(teacher=dict(model_name="metala_vit_nano", checkpoint_path="none.pth"))},
            "model.distillation.teacher.checkpoint_path: no file none.pth; .*, or model.distillation=None for",
        ),
        (
            {"model.backbone.checkpoint_path": "none.pth"},
            "checkpoint_path: no file none.pth; give another checkpoint of metala_vit_nano, or model.backbone.*=None",
        ),
        ({"load_from": "none.pth"}, "load_from: no file none.pth; give another checkpoint, or load_from=None for"),
        ({TRANSFORMS: [dict(type="Normalize", mean=0.5, std=0.5)]}, "makes images of float32, expected uint8"),
        ({TRANSFORMS: [dict(type="CenterCrop", height=9, width=9)]}, "the transform of Digits .train. fails"),
        ({"train_dataloader.dataset.split": "training"}, "split: got 'training'"),
        ({"train_dataloader.dataset.type": "Digitz"}, "Digitz is not in the"),
        ({"train_dataloader.dataset.roots": "x"}, "unexpected keyword argument 'roots'"),
        ({"train_dataloader.dataset.transform.transforms.0.rotat": 3}, "Affine.*rotat"),
        ({"train_dataloader.dataset.transform.transforms.0.type": "Afine"}, "unknown albumentation 'Afine'.*Affine"),
        ({"optim_wrapper.optimizer.learning_rate": 1.0}, "learning_rate"),
        ({"default_hooks.checkpoint.interval": 0}, "interval: got 0"),
        ({"default_hooks.unreadable.max_share": 2}, "max_share: got 2"),
        (
            {"default_hooks.checkpoint.save_best": "top_1"},
            r"save_best: got 'top_1', expected one of \('top1', 'top5', 'l",
        ),
        ({"default_hooks.checkpoint": dict(type="CheckpointHook")}, "expected a LastBestCheckpointHook"),
        ({"train_cfg": dict(_delete_=True, by_epoch=False, max_iters=9)}, "got a IterBasedTrainLoop, expected epochs"),
        ({"optim_wrapper.optimizer.type": "lamp"}, "unknown type 'lamp'.*lamb"),
        ({"optim_wrapper.optimizer.type": "adan"}, "adan: .*out of range"),  # it wants three betas
        ({"optim_wrapper.optimizer": dict(type="lamb", lr=1e-3, momentun=0.9)}, "lamb: .*momentun"),
    ],
)
def test_config_values(small_config, options, message):
    with pytest.raises(InputError, match=f"(?s){message}"):
        VisionRunner.from_cfg(small_config(options)).prepare()


def test_a_schedule_that_is_all_warm_up(small_config):
    """Catches mmengine's message of a begin and an end, for a run of one epoch behind a warm-up of one."""
    runner = VisionRunner.from_cfg(small_config({"train_cfg.max_epochs": 1, "param_scheduler.1.end": 1}))
    runner.prepare()
    with pytest.raises(InputError, match="no step left. With so few epochs shorten the warm-up too, by param_sch"):
        runner.build_param_scheduler(runner.param_schedulers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modell.backbone": 1}, "the config has no 'modell'.*did you mean model"),
        ({"model.backbon.depth": 1}, "model has no 'backbon'.*did you mean backbone"),
        ({"train_cfg.max_epoch": 5}, "config: train_cfg has no 'max_epoch' .did you mean max_epochs"),
        ({"val_cfg": dict(fp61=True)}, "config: val_cfg has no 'fp61' .did you mean fp16"),
        ({"train_dataloader.batchsize": 5}, "config: train_dataloader has no 'batchsize' .did you mean batch_size"),
        ({"train_dataloder": 1}, "unknown key 'train_dataloder'.*did you mean train_dataloader"),
        ({"model.backbone.depth.x": 1}, "'depth' is 4, which has no parts"),
        ({"epochs": 3}, "'epochs' is a variable of the config file"),
        ({"loader.batch_size": 1}, "'loader' is a variable of the config file"),
        (["epochs"], "got 'epochs', expected KEY=VALUE"),
    ],
)
def test_option_keys(options, message):
    with pytest.raises(InputError, match=message):
        load_config(str(DIGITS), options)


def test_config_files(tmp_path):
    with pytest.raises(InputError, match="config: no file .*none.py"):
        load_config(str(tmp_path / "none.py"))
    path = tmp_path / "broken.py"
    path.write_text("model = dict(")
    with pytest.raises(InputError, match="broken.py cannot be read: SyntaxError"):
        load_config(str(path))
    path.write_text(f"_base_ = {str(DIGITS)!r}\ntrain_dataloder = dict()\n")
    with pytest.raises(InputError, match="unknown key 'train_dataloder'.*train_dataloader"):
        load_config(str(path))
    path.write_text("model = dict()\n")
    with pytest.raises(InputError, match="lacks train_dataloader, val_dataloader"):
        load_config(str(path))


def test_devices(small_config):
    for name in ("gpu", "meta"):
        with pytest.raises(InputError, match=f"--device: got '{name}', expected auto, cpu, cuda"):
            small_config(device=name)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="finds no CUDA GPU here; use --device cpu"):
            small_config(device="cuda")
    with pytest.raises(InputError, match="--amp: got 'int8'"):
        small_config(amp="int8")


def test_our_own_bugs_keep_their_traceback(small_config, monkeypatch):
    monkeypatch.setattr("metala_vision.data.digits.stratified_split", lambda *_: None)
    with pytest.raises(TypeError, match="not subscriptable"):
        prepare(small_config())


def test_a_loss_that_is_not_finite_ends_the_run(run_small, tmp_path):
    with pytest.raises(
        InputError, match=r"the loss is (nan|inf) at step \d+ \(epoch \d\); last.pth is of the epoch before"
    ):
        run_small({"optim_wrapper.optimizer.lr": 1e30, "optim_wrapper.clip_grad": None})


def test_unreadable_images_are_skipped_and_counted(folder_config, images):
    """Three broken files of 60: named in the log, left out of every split, and counted in the result."""
    for name in ("cat/03.jpg", "cat/04.jpg", "dog/05.jpg"):
        (images / name).write_bytes((images / name).read_bytes()[:300])
    runner = VisionRunner.from_cfg(folder_config({"default_hooks.unreadable.max_share": 0.5}))
    result = runner.train_and_test()
    assert sum(result["unreadable"].values()) == 3
    assert result["images"] + result["unreadable"]["test"] == 6
    log = next(Path(runner.work_dir).glob("*/*.log")).read_text()
    for name in ("cat/03.jpg", "cat/04.jpg", "dog/05.jpg"):
        assert log.count(name) == 1


def test_too_many_unreadable_images_end_the_run(folder_config, images):
    for i in range(12):
        (images / "cat" / f"{i:02}.jpg").write_bytes(b"")
    runner = VisionRunner.from_cfg(folder_config({"default_hooks.unreadable.max_share": 0.1}))
    with pytest.raises(InputError, match=r"of the 48 images of the train split cannot be read.*max_share=0.1.*\.jpg"):
        runner.train_and_test()


def test_a_batch_without_a_readable_image(folder_config, images):
    """Nothing to learn from, and no NaN either."""
    for i in range(30):
        (images / "cat" / f"{i:02}.jpg").write_bytes(b"")
    options = {
        "default_hooks.unreadable.max_share": 1.0,
        "train_dataloader.batch_size": 1,
        "test_dataloader.batch_size": 1,
    }
    runner = VisionRunner.from_cfg(folder_config(options))
    former = runner.model.backbone.head.weight.clone()
    result = runner.train_and_test()
    assert result["images"] == 3
    assert all(p.isfinite().all() for p in runner.model.parameters())
    assert not torch.equal(former, runner.model.backbone.head.weight)


def test_wholly_unreadable_split(folder_config, images):
    for path in images.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="images of ImageFolder .train. are all unreadable: .*jpg"):
        prepare(folder_config())


def test_folder_errors_reach_the_user(folder_config, images):
    (images / "empty_class").mkdir()
    with pytest.raises(InputError, match="class folder .*empty_class has no images"):
        prepare(folder_config())
    (images / "empty_class").rmdir()
    config = folder_config()
    config.train_dataloader.drop_last, config.train_dataloader.batch_size = True, 1000
    with pytest.raises(InputError, match="images in 1 processes make no whole batch of 1000.*drop_last=False"):
        prepare(config)
    config = folder_config()
    config.train_dataloader.dataset.root = str(images / "nowhere")
    with pytest.raises(InputError, match=r"--data-root \(root\): no folder .*nowhere"):
        prepare(config)
    os.rename(next(path for path in images.iterdir() if path.is_dir()), os.fsencode(images) + b"/caf\xe9")
    with pytest.raises(InputError, match="classes: 'caf.udce9' is no text of one line in UTF-8; rename the fold"):
        prepare(folder_config())


def test_share_of_unreadable_is_checked():
    with pytest.raises(InputError, match="max_share: got -1"):
        UnreadableImagesHook(max_share=-1)


def test_img_size_of_the_test_tool(tmp_path):
    torch.save({}, tmp_path / "x.pth")
    config = load_config(str(DIGITS), SMALL)
    with pytest.raises(InputError, match="checkpoint: no file"):
        apply_test_options(config, str(tmp_path / "none.pth"))
    with pytest.raises(InputError, match="--img-size, --resolutions: got 0, expected a positive"):
        apply_test_options(config, str(tmp_path / "x.pth"), img_size=0)
    with pytest.raises(InputError, match=r"--crop-ratio: got 1.5, expected a number in \(0, 1\]"):
        apply_test_options(config, str(tmp_path / "x.pth"), crop_ratio=1.5)
    config.test_dataloader.dataset.transform = None
    with pytest.raises(InputError, match="--img-size: the test transform of the config has no img_size"):
        apply_test_options(config, str(tmp_path / "x.pth"), img_size=8)


def test_data_root():
    folder = load_config(str(ROOT / "configs" / "imagefolder" / "metala_vit_tiny_224_folder_100e.py"))
    set_data_root(folder, "elsewhere")
    assert {folder[f"{part}_dataloader"].dataset.root for part in ("train", "val", "test")} == {"elsewhere"}
    with pytest.raises(InputError, match=r"--data-root: got 'x', but the config's datasets \(Digits\) take no root"):
        set_data_root(load_config(str(DIGITS)), "x")


def test_train_options_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(str(DIGITS))
    apply_train_options(config)
    assert config.work_dir == "work_dirs/metala_vit_digits"


@pytest.mark.long
def test_tools_exit_codes(run_small):
    """0 with one JSON line last on stdout, 2 with one line on stderr and no traceback."""
    runner, result = run_small()
    options = [f"{key}={value}" for key, value in SMALL.items() if key.startswith(("model", "test"))]
    command = ["test.py", str(DIGITS)]
    best = str(Path(runner.work_dir) / "best.pth")
    done = run_tool(*command, best, "--json", "--cfg-options", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["top1"] == result["top1"]
    assert json.loads((Path(runner.work_dir) / "test" / "result.json").read_text())["top1"] == result["top1"]
    failed = run_tool(*command, "none.pth")
    assert failed.returncode == 2
    assert failed.stderr.strip() == "error: checkpoint: no file none.pth"


@pytest.mark.parametrize("tool", sorted(p.stem for p in (ROOT / "tools").glob("*.py") if "parse_args" in p.read_text()))
def test_help_has_examples(tool):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / f"{tool}.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "examples:" in done.stdout
    assert "--json" in done.stdout
