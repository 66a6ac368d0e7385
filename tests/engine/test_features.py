"""What a recipe can ask for, each against what it is defined as."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.registry import MODELS, TRANSFORMS
from small_runs import DIGITS, assert_same_checkpoint
from timm.data.mixup import Mixup
from torch.nn import functional as F

from metala_vision.engine import ClassificationRunner, ImageClassifier, load_config
from metala_vision.engine.distillation import Distillation
from metala_vision.engine.mixing import BatchMixup
from metala_vision.errors import InputError

ARGS = dict(embed_dim=32, depth=2, num_heads=1, in_chans=1, img_size=8, patch_size=2)
ONE_EPOCH = {"train_cfg.max_epochs": 1}


def classifier(**kwargs) -> ImageClassifier:
    torch.manual_seed(0)
    backbone = dict(model_name="metala_vit_nano", num_classes=10, **ARGS)
    return ImageClassifier(backbone, mean=(0.3,), std=(0.4,), **kwargs)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 1, 8, 8, generator=generator), torch.tensor([0, 3, 9, 1, 1, 5])


@pytest.fixture
def teacher(tmp_path):
    """A teacher of another architecture, and its checkpoint."""
    torch.manual_seed(7)
    options = dict(num_classes=10, in_chans=1, img_size=8, patch_size=4, embed_dim=32, depth=1, num_heads=2)
    model = timm.create_model("vit_tiny_patch16_224", **options).eval()
    torch.nn.init.normal_(model.head.weight)
    torch.save(model.state_dict(), tmp_path / "teacher.pth")
    return model, dict(model_name="vit_tiny_patch16_224", checkpoint_path=str(tmp_path / "teacher.pth"), **options)


# --- the loss


@pytest.mark.parametrize("size", [1, 2, 5, 6])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_is_timms_for_any_batch(batch, size, mode):
    images, labels = batch[0][:size], batch[1][:size]
    options = dict(mixup_alpha=0.8, cutmix_alpha=1.0, mode=mode)
    np.random.seed(3)  # noqa: NPY002
    mixed, targets = BatchMixup(options, 10, 0.1)(images.clone(), labels)
    assert mixed.shape == images.shape
    torch.testing.assert_close(targets.sum(1), torch.ones(size))
    even = size - size % 2
    if even:
        np.random.seed(3)  # noqa: NPY002
        expected = Mixup(**options, num_classes=10, label_smoothing=0.1)(images[:even].clone(), labels[:even])
        assert torch.equal(mixed[:even], expected[0])
        assert torch.equal(targets[:even], expected[1])
        assert not torch.equal(mixed[:even], images[:even])
    if size % 2:
        assert torch.equal(mixed[-1], images[-1])
        assert targets[-1].argmax() == labels[-1]
        assert targets[-1].min() == pytest.approx(0.01)


def test_mixed_targets_reach_the_loss(batch):
    images, labels = batch
    model = classifier(mixup=dict(mixup_alpha=0.8), label_smoothing=0.1).train()
    np.random.seed(5)  # noqa: NPY002
    loss = model(images.clone(), labels, mode="loss")["loss"]
    np.random.seed(5)  # noqa: NPY002
    mixed, targets = Mixup(mixup_alpha=0.8, num_classes=10, label_smoothing=0.1)(images.clone(), labels)
    expected = -(targets * model.backbone(mixed).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    assert "logits" in model(images, labels, mode="predict")[0], "evaluation mixes nothing"
    torch.testing.assert_close(model(images, labels, mode="predict")[0]["logits"], model.backbone(images))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_distillation(batch, teacher, kind):
    """Against the formulas, with a teacher that knows the images by another normalisation."""
    images, labels = batch
    expert, arguments = teacher
    options = dict(kind=kind, weight=0.3, temperature=2.0, teacher_mean=(0.5,), teacher_std=(0.2,))
    model = classifier(distillation=dict(teacher=arguments, **options)).train()
    loss = model(images, labels, mode="loss")["loss"]
    pixels = images * 0.4 + 0.3
    taught = expert((pixels - 0.5) / 0.2)
    logits = model.backbone(images)
    if kind == "hard":
        distilled = F.cross_entropy(logits, taught.argmax(1))
    else:
        p = (taught / 2).softmax(1)
        distilled = 4 * (p * (p.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(loss, 0.7 * F.cross_entropy(logits, labels) + 0.3 * distilled, rtol=1e-4, atol=1e-5)
    assert not any("teacher" in key for key in model.state_dict())
    former = copy.deepcopy(model.distillation.teacher.state_dict())
    loss.backward()
    assert all(p.grad is None for p in model.distillation.teacher.parameters())
    assert all(torch.equal(former[k], v) for k, v in model.distillation.teacher.state_dict().items())


def test_teacher_gets_images_as_timm_says(tmp_path):
    """A teacher of timm's with its own mean and size; one of other channels gets the model's."""
    torch.save(timm.create_model("test_vit", num_classes=10).state_dict(), tmp_path / "t.pth")
    teacher = dict(model_name="test_vit", checkpoint_path=str(tmp_path / "t.pth"))
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    distillation = Distillation(teacher, 10, mean, std, img_size=160)
    seen = []
    distillation.teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pixels = torch.rand(1, 3, 160, 160)
    theirs = distillation.teacher.pretrained_cfg
    tensors = [torch.tensor(values).view(-1, 1, 1) for values in (mean, std, theirs["mean"], theirs["std"])]
    distillation.teach((pixels - tensors[0]) / tensors[1])
    torch.testing.assert_close(seen[0], (pixels - tensors[2]) / tensors[3])
    distillation.teach(torch.randn(2, 3, 64, 64))
    assert seen[1].shape == (2, 3, 160, 160)


def test_distillation_errors(teacher):
    _, arguments = teacher
    for options, message in [
        (dict(teacher=dict(model_name="resnet18")), "the teacher has no weights"),
        (dict(teacher=arguments, kind="warm"), "kind is 'warm', expected one of"),
        (dict(teacher=arguments, weight=0), "weight is 0, expected"),
        (dict(teacher=arguments, temperature=0), "temperature is 0, expected"),
        (dict(teacher={**arguments, "num_classes": 11}), "teacher|checkpoint|size mismatch"),
        (dict(teacher="resnet18"), "teacher is 'resnet18', expected a dict"),
        (dict(teacher=arguments, alpha=1), "unexpected keyword argument 'alpha'"),
    ]:
        with pytest.raises(InputError, match=message):
            classifier(distillation=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mixup=dict(mixup_alpha=0.0)), "mixup_alpha and cutmix_alpha are both 0"),
        (dict(mixup=dict(mixup=0.8)), "model.mixup: .*unexpected keyword argument 'mixup'"),
        (dict(mixup=dict(mode="all")), "mode is 'all', expected"),
        (dict(label_smoothing=1.0), "label_smoothing is 1.0, expected"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InputError, match=message):
        classifier(**options)


# --- the model


def test_linear_probe_trains_the_head_alone(batch):
    images, labels = batch
    model = classifier(train_only_head=True)
    model.train()
    assert not model.backbone.blocks.training
    assert model.backbone.head.training
    model(images, labels, mode="loss")["loss"].backward()
    assert {name for name, p in model.backbone.named_parameters() if p.grad is not None} == {"head.weight", "head.bias"}


def test_channels_last_and_checkpointing_change_no_loss(batch):
    images, labels = batch
    plain = classifier().train()
    expected = plain(images, labels, mode="loss")["loss"]
    expected.backward()
    for options in (dict(channels_last=True), dict(grad_checkpointing=True)):
        model = classifier(**options).train()
        loss = model(images, labels, mode="loss")["loss"]
        loss.backward()
        torch.testing.assert_close(loss, expected)
        for p, q in zip(model.parameters(), plain.parameters()):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
        assert model.backbone.grad_checkpointing == ("grad_checkpointing" in options)


def test_compiled_model_keeps_its_names(batch):
    images, _ = batch
    plain, model = classifier().eval(), classifier(compile=True).eval()
    assert list(plain.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(images), rtol=1e-4, atol=1e-5)
    assert model.backbone._compiled_call_impl is not None


def test_init_from_another_head_and_size(tmp_path):
    """Everything but the classifier is that of the checkpoint, and a position embedding is resampled, timm's too."""
    for name, options in [
        ("metala_vit_nano", dict(embed_dim=32, depth=2, num_heads=1, patch_size=4, pos_embed="learn")),
        ("vit_tiny_patch16_224", dict(embed_dim=32, depth=2, num_heads=2, patch_size=4)),
    ]:
        former = timm.create_model(name, num_classes=5, img_size=16, **options)
        path = str(tmp_path / f"{name}.pth")
        torch.save(former.state_dict(), path)
        backbone = dict(model_name=name, num_classes=7, img_size=32, **options)
        model = ImageClassifier(backbone, mean=(0.5,) * 3, std=(0.5,) * 3, init_from=path).backbone
        assert model.head.weight.shape[0] == 7
        for key, value in model.state_dict().items():
            if not key.startswith("head") and key != "pos_embed":
                assert torch.equal(value, former.state_dict()[key]), key
        assert model.pos_embed.shape[1] > former.pos_embed.shape[1]
        same = ImageClassifier({**backbone, "num_classes": 5}, (0.5,) * 3, (0.5,) * 3, init_from=path).backbone
        assert torch.equal(same.head.weight, former.head.weight)


def test_init_from_prefers_the_average_and_refuses_another_model(tmp_path):
    former, average = (timm.create_model("metala_vit_nano", num_classes=10, **ARGS) for _ in range(2))
    torch.save(dict(state_dict=former.state_dict(), state_dict_ema=average.state_dict()), tmp_path / "run.pth")
    model = classifier(init_from=str(tmp_path / "run.pth")).backbone
    assert torch.equal(model.norm.weight, average.norm.weight)
    assert torch.equal(model.blocks[0].mixer.in_proj.weight, average.blocks[0].mixer.in_proj.weight)
    with pytest.raises(InputError, match="no file .*none.pth"):
        classifier(init_from=str(tmp_path / "none.pth"))
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="init_from .*broken.pth cannot be read"):
        classifier(init_from=str(tmp_path / "broken.pth"))
    for depth, classes in ((3, 10), (3, 5), (1, 5)):  # with another head too: timm alone would take what fits
        other = timm.create_model("metala_vit_nano", num_classes=classes, **{**ARGS, "depth": depth})
        torch.save(other.state_dict(), tmp_path / "x")
        with pytest.raises(InputError, match=r"(?s)init_from .*x: .*blocks\.[12]"):
            classifier(init_from=str(tmp_path / "x"))
    torch.save({"nothing.weight": torch.zeros(3)}, tmp_path / "x")
    with pytest.raises(InputError, match=r"(?s)init_from .*x: .*Missing"):
        classifier(init_from=str(tmp_path / "x"))


def test_parts_that_a_command_line_may_bring_in():
    options = ["model.mixup.mixup_alpha=0.8", "optim_wrapper.paramwise_cfg.layer_decay=0.75"]
    options += ["auto_scale_lr.enable=True", "auto_scale_lr.base_batch_size=64"]
    options += ["model.distillation.teacher.model_name=resnet18"]
    config = load_config(str(DIGITS), options)
    assert config.model.mixup == dict(mixup_alpha=0.8)
    assert config.model.distillation.teacher.model_name == "resnet18"
    assert config.optim_wrapper.paramwise_cfg.layer_decay == 0.75
    assert config.auto_scale_lr == dict(enable=True, base_batch_size=64)
    with pytest.raises(InputError, match="model has no 'mixups'"):
        load_config(str(DIGITS), ["model.mixups.mixup_alpha=0.8"])
    with pytest.raises(InputError, match="--cfg-options: .* cannot be read; values are numbers"):
        load_config(str(DIGITS), ["custom_hooks=[dict(type='ModelEmaHook', decay=0.9)]"])


# --- the optimiser


def test_layer_decay(small_config, tmp_path):
    options = {**ONE_EPOCH, "optim_wrapper.paramwise_cfg": dict(layer_decay=0.5)}
    runner = ClassificationRunner.from_cfg(small_config(options))
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
        other = ClassificationRunner.from_cfg(config)
        with pytest.raises(InputError, match=message):
            other.prepare()


def test_rate_follows_the_images_of_a_step(small_config, capfd):
    options = {
        **ONE_EPOCH,
        "auto_scale_lr": dict(enable=True, base_batch_size=128),
        "optim_wrapper.accumulative_counts": 3,
    }
    runner = ClassificationRunner.from_cfg(small_config(options))
    runner.prepare()
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    assert {group["lr"] for group in runner.optim_wrapper.optimizer.param_groups} == {2e-3 * 256 * 3 / 128}
    assert runner.optim_wrapper.base_param_settings["lr"] == pytest.approx(0.012), "what is logged as base_lr"
    captured = capfd.readouterr()
    assert "learning rate 0.012: 0.002 for 128 images, scaled to 768 images a step" in captured.out + captured.err


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
    runner = ClassificationRunner.from_cfg(small_config({**EMA, **ONE_EPOCH}))
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


def test_resuming_with_other_steps_is_refused(run_small):
    """The schedule counts batches: with twice as many a run would reach its end halfway."""
    run_small(ONE_EPOCH)
    with pytest.raises(InputError, match="took 256 images x 1 processes x 1 accumulated.*would take 128 x 1 x 1"):
        run_small({"train_dataloader.batch_size": 128}, resume="auto")
    with pytest.raises(InputError, match="would take 256 x 1 x 2; make them alike"):
        run_small({"optim_wrapper.accumulative_counts": 2}, resume="auto")


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
        ClassificationRunner.from_cfg(small_config({"custom_hooks": [dict(type="ModelEmaHook", decay=1.5)]}))


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


def test_every_config_builds_its_model():
    """Catches a config that names a model, a transform or an argument that is not there."""
    paths = [path for path in sorted(DIGITS.parents[1].glob("*/*.py")) if path.parent.name != "_base_"]
    assert len(paths) >= 20
    for path in paths:
        config = load_config(str(path))
        backbone = dict(config.model.backbone)
        timm.create_model(backbone.pop("model_name"), **backbone, device="meta")
        config.model.backbone.update(model_name="metala_vit_nano", depth=1)
        config.model.init_from = None
        MODELS.build(config.model)
        for part in ("train", "val", "test"):
            TRANSFORMS.build(config[f"{part}_dataloader"].dataset.transform)
        assert max(s["end"] for s in config.param_scheduler) == config.train_cfg.max_epochs
        assert f"configs/{path.parent.name}/{path.name}" in path.read_text(), "the header gives the command"
