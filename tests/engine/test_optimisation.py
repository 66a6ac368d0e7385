"""Rates, accumulation and the moving average, each against what it is defined as; and whole recipes."""

import json
from pathlib import Path

import pytest
import timm
import torch
from mmengine.registry import MODELS, TRANSFORMS
from small_runs import ARGS, OWN_CONFIGS, assert_same_checkpoint, classifier

from metala_vision.engine import VisionRunner, load_config
from metala_vision.errors import InputError

ONE_EPOCH = {"train_cfg.max_epochs": 1}

# --- the optimiser


def test_layer_decay(small_config, tmp_path):
    options = {**ONE_EPOCH, "optim_wrapper.paramwise_cfg": dict(layer_decay=0.5)}
    runner = VisionRunner.from_cfg(small_config(options))
    runner.prepare()
    rates = {}
    for group in runner.optim_wrapper.optimizer.param_groups:
        for p in group["params"]:
            rates[p] = group["lr"]
    backbone = runner.model.backbone
    lr = runner.cfg.optim_wrapper.optimizer.lr
    assert rates[backbone.head.weight] == lr
    assert rates[backbone.blocks[1].mlp.fc1.weight] == pytest.approx(lr * 0.5)
    assert rates[backbone.blocks[0].norm1.weight] == pytest.approx(lr * 0.25)
    assert rates[backbone.patch_embed.proj.weight] == pytest.approx(lr * 0.125)
    assert len(rates) == len(list(backbone.parameters()))
    runner.train()
    final = {p: g["lr"] for g in runner.optim_wrapper.optimizer.param_groups for p in g["params"]}
    assert final[backbone.patch_embed.proj.weight] < final[backbone.head.weight], "the schedule keeps the ratios"
    for paramwise, message in [(dict(layer_decay=2), "layer_decay is 2"), (dict(norm_decay=0), "got norm_decay")]:
        config = small_config({"optim_wrapper.paramwise_cfg": paramwise}, work_dir=str(tmp_path / "other"))
        other = VisionRunner.from_cfg(config)
        with pytest.raises(InputError, match=message):
            other.prepare()


def test_rate_follows_the_images_of_a_step(small_config, capfd):
    options = {
        **ONE_EPOCH,
        "auto_scale_lr": dict(enable=True, base_batch_size=128),
        "optim_wrapper.accumulative_counts": 3,
    }
    runner = VisionRunner.from_cfg(small_config(options))
    runner.prepare()
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    assert {group["lr"] for group in runner.optim_wrapper.optimizer.param_groups} == {2e-3 * 256 * 3 / 128}
    assert runner.optim_wrapper.base_param_settings["lr"] == pytest.approx(0.012), "what is logged as base_lr"
    captured = capfd.readouterr()
    assert "learning rate 0.012: 0.002 for 128 images, scaled to 768 images a step" in captured.out + captured.err


def test_rate_of_a_single_group_is_scaled_too(small_config):
    """Without weight decay there is one group, of which mmengine keeps no settings."""
    options = {"optim_wrapper.optimizer.weight_decay": 0.0, "auto_scale_lr": dict(enable=True, base_batch_size=128)}
    runner = VisionRunner.from_cfg(small_config(options))
    runner.prepare()
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    assert [group["lr"] for group in runner.optim_wrapper.optimizer.param_groups] == [4e-3]


@pytest.mark.long
def test_optimisers_of_timm_and_defaults_of_torch(small_config, tmp_path):
    for number, (optimizer, name, decay) in enumerate(
        [
            (dict(type="lamb", lr=1e-3, weight_decay=0.1), "Lamb", 0.1),
            (dict(type="adan", lr=1e-3), "Adan", 0.0),
            (dict(type="AdamW", lr=1e-3), "AdamW", 0.01),
            (dict(type="SGD", lr=1e-3, momentum=0.9), "SGD", 0),
        ]
    ):
        config = small_config({**ONE_EPOCH, "optim_wrapper.optimizer": None}, work_dir=str(tmp_path / str(number)))
        config.optim_wrapper.optimizer = optimizer
        runner = VisionRunner.from_cfg(config)
        runner.prepare()
        built = runner.optim_wrapper.optimizer
        assert type(built).__name__ == name
        assert {group["weight_decay"] for group in built.param_groups} == {0.0, decay}
        if number == 0:
            runner.train_and_test()


@pytest.mark.parametrize("scaling", [dict(enable=True), dict(enable=True, base_batch=64)])
def test_scaling_is_checked(small_config, scaling):
    with pytest.raises(InputError, match="auto_scale_lr: got .*, expected enable and base_batch_size"):
        small_config({"auto_scale_lr": scaling})


def test_accumulation_equals_the_larger_batch(run_small, tmp_path):
    """Five batches of 256 but for the last; without drop path, whose masks follow the batch."""
    options = {
        "model.backbone.drop_path_rate": 0.0,
        "train_cfg.max_epochs": 1,
        "optim_wrapper.clip_grad": None,
        "param_scheduler": None,
    }
    weights = []
    for size, sums in ((314, 2), (628, 1)):  # 1258 images: 4 and 2 whole batches and two images left
        changed = {"train_dataloader.batch_size": size, "optim_wrapper.accumulative_counts": sums}
        changed["train_dataloader.drop_last"] = True
        runner, _ = run_small({**options, **changed}, work_dir=str(tmp_path / str(size)))
        weights.append(torch.cat([p.detach().flatten() for p in runner.model.parameters()]))
    initial = torch.cat([p.detach().flatten() for p in classifier().parameters()])
    assert len(initial) == len(weights[0])
    # 628 = 2 x 314 images and the same order, so the sums of the gradients are the same
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=2e-4)


# --- the moving average


EMA = {"custom_hooks": [dict(type="ModelEmaHook", decay=0.9)]}


def test_average_is_what_it_is_defined_as(run_small, small_config, tmp_path):
    """Every step's weights, averaged by hand, are the checkpoint's average; validation and the result are of it."""
    runner = VisionRunner.from_cfg(small_config({**EMA, **ONE_EPOCH}))
    history = []

    class Watch:
        def __call__(self, module, *_):
            history.append({k: v.detach().clone() for k, v in runner.model.backbone.state_dict().items()})

    handle = runner.model.register_forward_pre_hook(Watch())
    result = runner.train_and_test()
    handle.remove()
    steps = runner.iter
    states = history[1:steps]  # the weights after each step but the last are those before the next one
    saved = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    states.append(saved["state_dict"])
    average = {k: v.clone() for k, v in states[0].items()}  # timm's first update takes the weights as they are
    for state in states[1:]:
        average = {k: 0.9 * average[k] + 0.1 * state[k] for k in average}
    average["nominal_grid"] = states[0]["nominal_grid"]  # a grid has no average
    for key, value in saved["state_dict_ema"].items():
        torch.testing.assert_close(value, average[key], rtol=1e-5, atol=1e-6)
    assert result["weights"] == "ema"
    assert result["val_best"] == pytest.approx(
        json.loads(Path(f"{runner.work_dir}/history.json").read_text())[0]["val/top1"]
    )
    loaded = timm.create_model(
        "metala_vit_nano", num_classes=10, **ARGS, checkpoint_path=str(tmp_path / "run/last.pth")
    )
    assert torch.equal(loaded.norm.weight, saved["state_dict_ema"]["norm.weight"]), "timm takes the average"
    ours = runner.model.backbone.state_dict()
    best = torch.load(tmp_path / "run" / "best.pth", weights_only=True)
    assert all(torch.equal(ours[k], v) for k, v in best["state_dict_ema"].items()), "tested weights are the average"


@pytest.mark.long
def test_average_resumes(run_small, tmp_path):
    run_small(EMA, work_dir=str(tmp_path / "straight"))
    run_small({**EMA, **ONE_EPOCH}, work_dir=str(tmp_path / "parts"))
    run_small(EMA, work_dir=str(tmp_path / "parts"), resume="auto")
    assert_same_checkpoint(tmp_path / "straight" / "last.pth", tmp_path / "parts" / "last.pth")
    assert "state_dict_ema" in torch.load(tmp_path / "parts" / "last.pth", weights_only=True)


def test_resuming_keeps_the_average(run_small, small_config, tmp_path):
    """Its settings come from the checkpoint; others, or one where there was none, are refused."""
    run_small({**EMA, **ONE_EPOCH})
    (hook,) = small_config(resume="auto").custom_hooks
    assert hook == dict(type="ModelEmaHook", decay=0.9, use_warmup=False)
    with pytest.raises(InputError, match="--ema: got a moving average with .*0.5.*, but the run of .* has one with"):
        small_config(resume="auto", ema=0.5)
    without = str(tmp_path / "without")
    run_small(ONE_EPOCH, work_dir=without)
    with pytest.raises(InputError, match="--ema: .* has no moving average; leave it out"):
        small_config(resume="auto", ema=0.9, work_dir=without)
    assert not small_config(resume="auto", work_dir=without).get("custom_hooks")


def test_option_of_the_average_keeps_what_the_config_says(small_config):
    (hook,) = small_config(ema=0.99).custom_hooks
    assert hook == dict(type="ModelEmaHook", decay=0.99, use_warmup=True)
    (hook,) = small_config({"custom_hooks": [dict(type="ModelEmaHook", use_warmup=False)]}, ema=0.99).custom_hooks
    assert hook == dict(type="ModelEmaHook", decay=0.99, use_warmup=False)


@pytest.mark.long
def test_resuming_with_other_steps_is_refused(run_small):
    """The schedule counts batches: with twice as many a run would reach its end halfway."""
    run_small(ONE_EPOCH)
    with pytest.raises(InputError, match="took 256 images x 1 processes x 1 accumulated.*would take 128 x 1 x 1"):
        run_small({"train_dataloader.batch_size": 128}, resume="auto")
    with pytest.raises(InputError, match="would take 256 x 1 x 2; make them alike"):
        run_small({"optim_wrapper.accumulative_counts": 2}, resume="auto")


@pytest.mark.long
def test_accumulation_resumes(run_small, tmp_path):
    """Five batches an epoch by twos: the odd one is an update of its own, and no gradient waits for the next epoch."""
    sums = {"optim_wrapper.accumulative_counts": 2, **EMA}
    run_small(sums, work_dir=str(tmp_path / "straight"))
    run_small({**sums, **ONE_EPOCH}, work_dir=str(tmp_path / "parts"))
    runner, _ = run_small(sums, work_dir=str(tmp_path / "parts"), resume="auto")
    assert len(runner.train_dataloader) == 5
    assert_same_checkpoint(tmp_path / "straight" / "last.pth", tmp_path / "parts" / "last.pth")
    steps = {int(s["step"]) for s in runner.optim_wrapper.optimizer.state.values()}
    assert steps == {2 * 3}


def test_decay_of_the_average_is_checked(small_config):
    with pytest.raises(InputError, match="decay: got 1.5, expected"):
        VisionRunner.from_cfg(small_config({"custom_hooks": [dict(type="ModelEmaHook", decay=1.5)]}))


# --- everything at once


def test_whole_recipe(run_small, teacher):
    """Mixup, distillation, average, layer decay, accumulation, bfloat16 and repeated augmentation together."""
    _, arguments = teacher
    options = {
        **EMA,
        "model.mixup": dict(mixup_alpha=0.8, cutmix_alpha=1.0),
        "model.distillation": dict(teacher=arguments, kind="soft"),
        "model.grad_checkpointing": True,
        "optim_wrapper.paramwise_cfg": dict(layer_decay=0.75),
        "optim_wrapper.accumulative_counts": 2,
        "train_dataloader.sampler.repeats": 3,
    }
    runner, result = run_small(options, amp="bfloat16", device="cpu")
    assert result["precision"] == "bfloat16"
    assert all(p.isfinite().all() for p in runner.model.parameters())
    assert result["images"] == 359


def test_every_config_builds_its_model(tmp_path):
    """Catches a config that names a model, a transform or an argument that is not there."""
    assert len(OWN_CONFIGS) >= 30
    for path in OWN_CONFIGS:
        config = load_config(str(path))
        backbone = dict(config.model.backbone)
        if config.model.type != "SequenceModel":  # its model is no timm model and small enough to be built below
            timm.create_model(backbone.pop("model_name"), **backbone, device="meta")
            config.model.init_from = None
            if config.model.type == "Linearization":
                file, name = tmp_path / f"{path.stem}.pth", config.model.backbone.teacher
                torch.save(timm.create_model(name, depth=1, num_classes=0).state_dict(), file)
                config.model.backbone.depth = 1
                config.model.teacher = dict(checkpoint_path=str(file))
            elif "teacher" in backbone:
                config.model.backbone.depth = 1
            else:
                config.model.backbone.update(model_name="metala_vit_nano", depth=1)
        MODELS.build(config.model)
        for part in ("train", "val", "test"):
            transform = config[f"{part}_dataloader"].dataset.get("transform")
            assert transform or config.model.type != "ImageClassifier"
            if transform:
                TRANSFORMS.build(transform)
        ends = [s.get("end", 0) for s in config.param_scheduler if s.get("by_epoch", True)]
        steps = [step for s in config.param_scheduler for step in s.get("milestones", ())]
        assert max(ends) == config.train_cfg.max_epochs or 0 < max(steps, default=0) < config.train_cfg.max_epochs
        assert f"configs/{path.parent.name}/{path.name}" in path.read_text(), "the header gives the command"
