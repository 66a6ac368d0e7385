"""What a recipe can ask for, each against what it is defined as."""

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from small_runs import ARGS, DIGITS, classifier
from timm.data.mixup import Mixup
from torch.nn import functional as F

from metala_vision.engine import ImageClassifier, load_config
from metala_vision.engine.tasks.backbone import create_backbone
from metala_vision.engine.tasks.distillation import Distillation
from metala_vision.engine.tasks.mixing import BatchMixup
from metala_vision.errors import InputError


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 1, 8, 8, generator=generator), torch.tensor([0, 3, 9, 1, 1, 5])


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
    former = copy.deepcopy(model.distillation.teacher.model.state_dict())
    loss.backward()
    assert all(p.grad is None for p in model.distillation.teacher.model.parameters())
    assert all(torch.equal(former[k], v) for k, v in model.distillation.teacher.model.state_dict().items())


def test_teacher_gets_images_as_timm_says(tmp_path):
    """A teacher of timm's with its own mean and size; one of other channels gets the model's."""
    torch.save(timm.create_model("test_vit", num_classes=10).state_dict(), tmp_path / "t.pth")
    teacher = dict(model_name="test_vit", checkpoint_path=str(tmp_path / "t.pth"))
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    distillation = Distillation(teacher, 10, mean, std, img_size=160)
    seen = []
    distillation.teacher.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pixels = torch.rand(1, 3, 160, 160)
    theirs = distillation.teacher.model.pretrained_cfg
    tensors = [torch.tensor(values).view(-1, 1, 1) for values in (mean, std, theirs["mean"], theirs["std"])]
    distillation.teach((pixels - tensors[0]) / tensors[1])
    torch.testing.assert_close(seen[0], (pixels - tensors[2]) / tensors[3])
    distillation.teach(torch.randn(2, 3, 64, 64))
    assert seen[1].shape == (2, 3, 160, 160)


def test_pretrained_teacher_keeps_its_classifier(tmp_path):
    """timm puts a new one, and says nothing, where the number of classes is not that of its weights."""
    expert = timm.create_model("test_vit", num_classes=10)
    torch.save(expert.state_dict(), tmp_path / "t.pth")
    overlay = dict(file=str(tmp_path / "t.pth"), num_classes=10)
    arguments = dict(model_name="test_vit", pretrained=True, pretrained_cfg_overlay=overlay)
    teacher = Distillation(arguments, 10, (0.5,) * 3, (0.5,) * 3).teacher.model
    assert torch.equal(teacher.head.weight, expert.head.weight)
    with pytest.raises(InputError, match="the teacher was trained on 10 classes, the model has 7"):
        Distillation(arguments, 7, (0.5,) * 3, (0.5,) * 3)
    del arguments["pretrained_cfg_overlay"]
    whole = dict(file=str(tmp_path / "t.pth"), num_classes=10, classifier="head", first_conv="patch_embed.proj")
    teacher = Distillation({**arguments, "pretrained_cfg": whole}, 10, (0.5,) * 3, (0.5,) * 3).teacher.model
    assert torch.equal(teacher.head.weight, expert.head.weight)
    with pytest.raises(InputError, match="the teacher was trained on 10 classes, the model has 1000"):
        Distillation({**arguments, "pretrained_cfg": whole}, 1000, (0.5,) * 3, (0.5,) * 3)
    tagged = dict(model_name="vit_base_patch16_224.augreg_in21k", pretrained=True)
    with pytest.raises(InputError, match="the teacher was trained on 21843 classes, the model has 1000"):
        Distillation(tagged, 1000, (0.5,) * 3, (0.5,) * 3)


def test_distillation_errors(teacher):
    _, arguments = teacher
    for options, message in [
        (dict(teacher=dict(model_name="resnet18")), "the teacher has no weights"),
        (dict(teacher=arguments, kind="warm"), "kind is 'warm', expected one of"),
        (dict(teacher=arguments, weight=0), "weight is 0, expected"),
        (dict(teacher=arguments, temperature=0), "temperature is 0, expected"),
        (dict(teacher={**arguments, "num_classes": 11}), "the teacher was trained on 11 classes, the model has 10"),
        (dict(teacher=dict(model_name="test_vit", pretrained=True)), "trained on 1000 classes, the model has 10"),
        (dict(teacher=dict(model_name="tset_vit", pretrained=True)), "unknown model_name 'tset_vit'"),
        (dict(teacher=dict(model_name="test_vit.nope", pretrained=True)), "test_vit.nope"),
        (dict(teacher=dict(model_name=None, pretrained=True)), "unknown model_name None"),
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


def test_compiled_model_keeps_its_names(batch, monkeypatch):
    # Without inductor, which takes a quarter of a minute and sees no names
    traced = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
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
    with pytest.raises(InputError, match="model.init_from: no file .*none.pth; give another .*model.init_from=None"):
        classifier(init_from=str(tmp_path / "none.pth"))
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    torch.save(dict(state_dict=Path("code")), tmp_path / "code.pth")
    for name in ("broken", "code"):
        file = str(tmp_path / f"{name}.pth")
        with pytest.raises(InputError, match=f"^model.init_from: .*{name}.pth cannot be read: it is no") as raised:
            classifier(init_from=file)
        assert "weights_only" not in str(raised.value), "no advice to run what is in a file"
        with pytest.raises(InputError, match=f"^model.backbone.checkpoint_path: .*{name}.pth cannot be read: it is no"):
            create_backbone(dict(model_name="metala_vit_nano", checkpoint_path=file))
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
