"""Bad input that training can meet: a clear error before the first step, and nothing lost."""

import errno
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small_runs import DIGITS, ROOT, SMALL

from metala_vision.engine import (
    ClassificationMetric,
    StepSeedHook,
    VisionRunner,
    apply_test_options,
    apply_train_options,
    held,
    load_config,
    set_data_root,
)
from metala_vision.engine.hooks import UnreadableImagesHook
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


def prepare(config) -> VisionRunner:
    runner = VisionRunner.from_cfg(config)
    runner.prepare()
    return runner


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
        ({"model.backbone.num_classes": 7}, "num_classes is 7, but Digits .train. has 10 classes"),
        ({"model.backbone.num_classes": 11}, "num_classes is 11.*set model.backbone.num_classes=10"),
        ({"model.backbone.checkpoint_path": "none.pth"}, "model: metala_vit_nano: no file none.pth"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modell.backbone": 1}, "the config has no 'modell'.*did you mean model"),
        ({"model.backbon.depth": 1}, "model has no 'backbon'.*did you mean backbone"),
        ({"train_dataloder": 1}, "unknown key 'train_dataloder'.*did you mean train_dataloader"),
        ({"model.backbone.depth.x": 1}, "'depth' is 4, which has no parts"),
        ({"epochs": 3}, "'epochs' is a variable of the config file"),
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


def test_a_finished_run_is_not_overwritten(small_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pth").write_bytes(b"hours of work")
    with pytest.raises(InputError, match="holds a run already; continue it with --resume auto, or name another"):
        small_config()
    assert (tmp_path / "run" / "last.pth").read_bytes() == b"hours of work"


def test_checkpoints_that_do_not_fit(small_config, tmp_path):
    runner = prepare(small_config())
    with pytest.raises(InputError, match="checkpoint: no file"):
        runner.load_checkpoint(str(tmp_path / "none.pth"))
    for text in ("not a checkpoint", "epoch 1\n", "state", ""):
        (tmp_path / "text.pth").write_text(text)
        with pytest.raises(InputError, match="text.pth is no checkpoint that can be read") as raised:
            runner.load_checkpoint(str(tmp_path / "text.pth"))
        assert "weights_only" not in str(raised.value), "torch's own text advises to run what is in the file"
    torch.save(timm.create_model("metala_vit_nano", depth=1, in_chans=1).state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        InputError, match="(?s)of another model.*missing .*blocks.1.norm1.weight.*of another shape.*instead"
    ):
        runner.load_checkpoint(str(tmp_path / "other.pth"))
    model = runner.model.backbone
    former = {k: v.clone() for k, v in model.state_dict().items()}
    truncated = (tmp_path / "other.pth").read_bytes()[:5000]
    (tmp_path / "half.pth").write_bytes(truncated)
    with pytest.raises(InputError, match="half.pth is no checkpoint"):
        runner.load_checkpoint(str(tmp_path / "half.pth"))
    assert all(torch.equal(v, former[k]) for k, v in model.state_dict().items()), (
        "a refused checkpoint changed the model"
    )


class Evil:
    def __reduce__(self):
        return (print, ("code ran while a checkpoint was loaded",))


def test_checkpoints_run_no_code(small_config, tmp_path, capsys):
    runner = prepare(small_config())
    torch.save(dict(state_dict=runner.model.backbone.state_dict(), extra=Evil()), tmp_path / "evil.pth")
    with pytest.raises(InputError, match="no checkpoint that can be read"):
        runner.load_checkpoint(str(tmp_path / "evil.pth"))
    assert "code ran" not in capsys.readouterr().out
    pickle.loads(pickle.dumps(Evil()))  # the trap is real
    assert "code ran" in capsys.readouterr().out


def test_resume_is_of_the_same_run(run_small, small_config, tmp_path):
    """Seed and precision come from the checkpoint; options that contradict it are refused."""
    run_small({"train_cfg.max_epochs": 1}, seed=5)
    last = tmp_path / "run" / "last.pth"
    assert small_config(resume="auto").randomness.seed == 5
    with pytest.raises(InputError, match="--seed: got 1, but the run of .* has seed 5"):
        small_config(resume="auto", seed=1)
    with pytest.raises(InputError, match="--amp: got bfloat16, but the run of .* has float32"):
        small_config(resume="auto", amp="bfloat16")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "last.pth").write_bytes(b"another run")
    with pytest.raises(InputError, match="holds a run already"):
        small_config(resume=str(last), work_dir=str(tmp_path / "other"))
    torch.save(timm.create_model("metala_vit_nano").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match="holds weights alone; to start from them set load_from="):
        small_config(resume=str(tmp_path / "weights.pth"), work_dir=str(tmp_path / "new"))


def test_resume_with_other_rates_is_refused(run_small, tmp_path):
    """mmengine goes on by the checkpoint's schedule and rates, whatever the config says."""
    run_small({"train_cfg.max_epochs": 1})
    for options, message in [
        ({"train_cfg.max_epochs": 4, "param_scheduler.1.end": 4}, r"param_scheduler.1.end is 10 and not 20"),
        ({"optim_wrapper.optimizer.lr": 1e-4}, r"lr of group 0 is 0.002 and not 0.0001"),
        ({"optim_wrapper.optimizer.weight_decay": 0.2}, "weight_decay of group 1 is 0.05 and not 0.2"),
        ({"param_scheduler": [dict(type="ConstantLR", factor=1.0)]}, "param_schedulers is 2 and not 1"),
    ]:
        with pytest.raises(
            InputError, match=f"(?s)--resume: .*has other rates than the config: .*{message}.*load_from"
        ):
            run_small(options, resume="auto")


@pytest.mark.parametrize(
    ("schedule", "other"),
    [
        (dict(type="MultiStepLR", milestones=[1, 2]), dict(milestones=[2, 3])),
        (dict(type="CosineRestartLR", periods=[1, 2], restart_weights=[1, 1], eta_min=0.0), dict(periods=[2, 2])),
        (dict(type="CosineAnnealingParamScheduler", param_name="weight_decay", eta_min=1.0, end=4), dict(eta_min=0.5)),
    ],
)
def test_schedules_of_every_kind_resume(run_small, schedule, other):
    run_small({"train_cfg.max_epochs": 1, "param_scheduler": [schedule]})
    with pytest.raises(InputError, match="--resume: .*has other rates"):
        run_small({"train_cfg.max_epochs": 2, "param_scheduler": [{**schedule, **other}]}, resume="auto")
    run_small({"train_cfg.max_epochs": 2, "param_scheduler": [schedule]}, resume="auto")


def test_one_run_in_a_folder(tmp_path, monkeypatch):
    taken = pytest.raises(InputError, match="--work-dir: another run is writing into .*run; name another")
    with held(tmp_path / "run"), taken, held(tmp_path / "run"):
        pass
    with held(tmp_path / "run"):
        pass

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", no_locks)
        with pytest.warns(UserWarning, match="locks no files"), held(tmp_path / "run"):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is no folder that can be written"), held(tmp_path / "file"):
        pass


def test_resume_into_another_folder_takes_the_best_along(run_small, tmp_path):
    """best.pth must be the best of the whole run, also where the first part lies elsewhere."""
    options = {"train_cfg.max_epochs": 3}
    first, _ = run_small({"train_cfg.max_epochs": 1}, work_dir=str(tmp_path / "first"))
    path = tmp_path / "first" / "last.pth"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["message_hub"]["runtime_info"]["best_score"] = 101.0  # nothing can beat it
    torch.save(checkpoint, path)
    runner, result = run_small(options, work_dir=str(tmp_path / "second"), resume=str(path))
    assert result["best_epoch"] == 1
    logged = runner.message_hub.log_scalars["train/loss"].data[0]
    assert len(logged) == runner.log_processor.window_size == 10, "of 15 steps: mmengine copies them in every one"
    assert (tmp_path / "second" / "best.pth").read_bytes() == (tmp_path / "first" / "best.pth").read_bytes()
    (tmp_path / "first" / "best.pth").unlink()
    _, result = run_small(options, work_dir=str(tmp_path / "third"), resume=str(path))
    assert result["best_epoch"] in (2, 3)
    saved = torch.load(tmp_path / "third" / "best.pth", weights_only=True)
    assert saved["meta"]["epoch"] == result["best_epoch"]


def test_our_own_bugs_keep_their_traceback(small_config, monkeypatch):
    monkeypatch.setattr("metala_vision.data.digits.stratified_split", lambda *_: None)
    with pytest.raises(TypeError, match="not subscriptable"):
        prepare(small_config())


def test_a_loss_that_is_not_finite_ends_the_run(run_small, tmp_path):
    with pytest.raises(
        InputError, match=r"the loss is (nan|inf) at step \d+ \(epoch \d\); last.pth is of the epoch before"
    ):
        run_small({"optim_wrapper.optimizer.lr": 1e30, "optim_wrapper.clip_grad": None})


def test_weights_that_are_not_finite_are_not_saved(run_small, tmp_path, monkeypatch):
    """A last step may have a finite loss, and a gradient that is not: no later step would show it."""
    after_train_iter = StepSeedHook.after_train_iter

    def poison(self, runner, batch_idx, **kwargs):
        if runner.iter == 9:
            next(runner.model.parameters()).data[0] = float("nan")

    monkeypatch.setattr(StepSeedHook, "after_train_iter", poison)
    with pytest.raises(InputError, match=r"weights are not finite after step 10 \(epoch 2\)"):
        run_small({"train_cfg.val_begin": 9})
    monkeypatch.setattr(StepSeedHook, "after_train_iter", after_train_iter)
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["meta"]["epoch"] == 1


@pytest.mark.parametrize(
    ("save_best", "scores", "best"),
    [("loss", (2.0, 1.0, 1.5), 2), ("top1", (2.0, 1.0, 1.5), 1), ("top1", (float("nan"), 1.0, 1.5), 3)],
)
def test_best_is_the_least_loss_and_the_greatest_score(run_small, monkeypatch, save_best, scores, best):
    given = iter(scores)

    def metrics(self, results):
        self.confusion = np.eye(10, dtype=int)
        return {"top1": 0.0, "loss": 0.0, save_best: next(given, 0.0)}

    monkeypatch.setattr(ClassificationMetric, "compute_metrics", metrics)
    options = {"train_cfg.max_epochs": 3, "default_hooks.checkpoint.save_best": save_best}
    _, result = run_small(options)
    assert result["best_epoch"] == best


def test_given_weights_survive_the_start_of_training(run_small, small_config, tmp_path):
    """mmengine's init_weights would initialise the backbone anew and train from scratch."""
    first, _ = run_small({"train_cfg.max_epochs": 1})
    weights = str(tmp_path / "run" / "best.pth")
    options = {"model.backbone.checkpoint_path": weights, "optim_wrapper.optimizer.lr": 1e-12}
    second, _ = run_small({**options, "train_cfg.max_epochs": 1}, work_dir=str(tmp_path / "second"))
    saved = torch.load(weights, weights_only=True)["state_dict"]
    for name, value in second.model.backbone.state_dict().items():
        torch.testing.assert_close(value, saved[name], rtol=0, atol=1e-6)


def test_resume_from_nowhere(small_config, tmp_path):
    with pytest.raises(InputError, match="--resume: no file"):
        small_config(resume=str(tmp_path / "none.pth"))
    assert "load_from" not in small_config(resume="auto"), "auto starts afresh where there is nothing to resume"


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
    config.train_dataloader.dataset.root = str(images / "nowhere")
    with pytest.raises(InputError, match="root: no folder .*nowhere"):
        prepare(config)


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


def test_tools_exit_codes(run_small):
    """0 with one JSON line last on stdout, 2 with one line on stderr and no traceback; at another image size too."""
    runner, result = run_small()
    options = [f"{key}={value}" for key, value in SMALL.items() if key.startswith(("model", "test"))]
    command = [sys.executable, str(ROOT / "tools" / "test.py"), str(DIGITS)]
    best = str(Path(runner.work_dir) / "best.pth")
    done = subprocess.run([*command, best, "--json", "--cfg-options", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["top1"] == result["top1"]
    assert json.loads((Path(runner.work_dir) / "test" / "result.json").read_text())["top1"] == result["top1"]
    bigger = subprocess.run(
        [*command, best, "--img-size", "13", "--cfg-options", *options], capture_output=True, text=True
    )
    assert bigger.returncode == 0, bigger.stderr
    assert json.loads(bigger.stdout.splitlines()[-1])["img_size"] == 13
    failed = subprocess.run([*command, "none.pth"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.strip() == "error: checkpoint: no file none.pth"


@pytest.mark.parametrize("tool", sorted(p.stem for p in (ROOT / "tools").glob("*.py") if "parse_args" in p.read_text()))
def test_help_has_examples(tool):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / f"{tool}.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "examples:" in done.stdout
    assert "--json" in done.stdout
