"""A model that learns another's final tokens: against least squares of another library, with teachers of every form."""

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LinearRegression
from torch.nn import functional as F

from metala_vision.dense import detector
from metala_vision.engine import ImageClassifier
from metala_vision.engine.tasks import token_distillation
from metala_vision.engine.tasks.token_distillation import TokenDistillation, tokens_and_logits, unexplained
from metala_vision.errors import InputError

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
# A ViT with a class token, a ViT without, one whose maps have channels last, and a convolutional net.
TEACHERS = {
    "vit_tiny_patch16_224": dict(embed_dim=48, depth=2, num_heads=3),
    "metala_vit_nano": dict(embed_dim=32, depth=2, num_heads=2),
    "swin_tiny_patch4_window7_224": dict(embed_dim=24, depths=(1, 1), num_heads=(2, 2), strict_img_size=False),
    "resnet10t": {},
}


@pytest.fixture(params=list(TEACHERS))
def taught(request, tmp_path):
    """A teacher without a head, and the arguments that name its checkpoint."""
    torch.manual_seed(3)
    model = timm.create_model(request.param, num_classes=7, **TEACHERS[request.param]).eval()
    torch.save(model.state_dict(), tmp_path / "teacher.pth")
    return model, dict(
        model_name=request.param, checkpoint_path=str(tmp_path / "teacher.pth"), **TEACHERS[request.param]
    )


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_unexplained_is_that_of_least_squares(noise):
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(300, 12, generator=generator, dtype=torch.float64) * 5 + 3
    wanted = found @ torch.randn(12, 20, generator=generator, dtype=torch.float64)
    wanted = wanted + noise * torch.randn(300, 20, generator=generator, dtype=torch.float64) - 100
    fit = LinearRegression().fit(found.numpy(), wanted.numpy())
    rest = wanted.numpy() - fit.predict(found.numpy())
    expected = np.mean((rest**2).mean(0) / wanted.numpy().var(0))
    assert float(unexplained(found, wanted)) == pytest.approx(expected, abs=2e-5)


def test_unexplained_has_the_gradient_of_the_fitted_error():
    """Catches a backward pass that misses what the function's own change would bring: nothing, at its best."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(40, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(40, 9, generator=generator, dtype=torch.float64)
    unexplained(found, wanted).backward()
    step = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        slope = (unexplained(found + 1e-5 * step, wanted) - unexplained(found - 1e-5 * step, wanted)) / 2e-5
    assert float((found.grad * step).sum()) == pytest.approx(float(slope), rel=2e-3)


def test_the_loss_is_its_formula(taught):
    """For each form of teacher: normalised for it, its map resampled to the model's grid, prefix tokens left out."""
    expert, arguments = taught
    model = ImageClassifier(
        backbone=dict(model_name="metala_vit_nano", num_classes=10, embed_dim=32, depth=2, num_heads=2, img_size=64),
        mean=MEAN,
        std=STD,
        distillation=dict(
            kind="tokens", teacher=arguments, weight=0.3, teacher_mean=(0.5,) * 3, teacher_std=(0.2,) * 3
        ),
    ).train()
    images, labels = torch.randn(5, 3, 64, 96), torch.tensor([0, 3, 9, 1, 1])
    loss = model(images, labels, mode="loss")["loss"]
    pixels = images * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)
    name = arguments["model_name"]
    if name.startswith("vit"):
        expert = timm.create_model(name, dynamic_img_size=True, num_classes=7, **TEACHERS[name]).eval()
        expert.load_state_dict(torch.load(arguments["checkpoint_path"]))
    with torch.no_grad():
        features = expert.forward_features((pixels - 0.5) / 0.2)
    if name.startswith("vit"):
        features = features[:, 1:]
    if features.ndim == 3:
        features = features.transpose(1, 2).unflatten(2, (4, 6))
    elif name.startswith("swin"):
        features = features.permute(0, 3, 1, 2)
    features = F.interpolate(features, (4, 6), mode="bilinear", antialias=True)
    own = model.backbone.forward_features(images)
    assert own.shape[:2] == (5, 24)
    rest = unexplained(own.flatten(0, 1), features.permute(0, 2, 3, 1).flatten(0, 2))
    expected = 0.7 * F.cross_entropy(model.backbone(images), labels) + 0.3 * rest
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
    assert all(p.grad is None for p in model.distillation.map.model.parameters())
    assert set(model.state_dict()) == {f"backbone.{key}" for key in model.backbone.state_dict()}


@pytest.mark.long
def test_any_model_of_timm_learns(taught):
    """What can be learned is learned: without labels the unexplained share falls."""
    _, arguments = taught
    for student in ("resnet10t", "test_vit"):
        torch.manual_seed(0)
        model = ImageClassifier(
            backbone=dict(model_name=student, num_classes=10),
            mean=MEAN,
            std=STD,
            distillation=dict(kind="tokens", teacher=arguments, weight=1.0, img_size=64),
        ).train()
        images, labels = torch.randn(8, 3, 160, 160), torch.zeros(8, dtype=torch.long)
        tokens, logits = tokens_and_logits(model.backbone.eval(), images)
        torch.testing.assert_close(logits, model.backbone(images))
        assert tokens.ndim == 4
        optimiser = torch.optim.AdamW(model.backbone.parameters(), lr=1e-3)
        losses = []
        for _ in range(8):
            loss = model(images, labels, mode="loss")["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0], losses


def test_a_detectors_backbone_teaches(tmp_path):
    small = dict(embed_dim=32, depth=2, num_heads=2)
    found = detector("faster_rcnn", "metala_vit_nano", 2, backbone_arguments=small)
    torch.save({"state_dict": found.state_dict()}, tmp_path / "detector.pth")
    teacher = dict(model_name="metala_vit_nano", checkpoint_path=str(tmp_path / "detector.pth"), **small)
    learned = TokenDistillation(teacher, MEAN, STD).map.model.trunk.state_dict()
    whole = found.state_dict()
    prefix = next(key for key in whole if key.endswith("patch_embed.proj.weight")).removesuffix(
        "patch_embed.proj.weight"
    )
    assert len(learned) > 20
    for key, value in learned.items():
        assert torch.equal(value, whole[prefix + key]), key


def test_what_does_not_fit(taught, tmp_path):
    _, arguments = taught
    torch.save({"x": torch.zeros(2)}, tmp_path / "other.pth")
    for options, message in [
        (dict(teacher=dict(model_name="resnet10t")), "the teacher has no weights"),
        (dict(teacher=arguments, weight=0), "weight is 0, expected"),
        (dict(teacher=arguments, temperature=2.0), "unexpected keyword argument 'temperature'"),
        (dict(teacher="resnet10t"), "teacher is 'resnet10t', expected a dict"),
        (dict(teacher={**arguments, "checkpoint_path": "none.pth"}), "checkpoint_path: no file none.pth"),
        (
            dict(teacher={**arguments, "checkpoint_path": str(tmp_path / "other.pth")}),
            "model.distillation.teacher.checkpoint_path: .*other.pth",
        ),
        (dict(teacher=dict(model_name="tset_vit", pretrained=True)), "unknown model 'tset_vit'"),
    ]:
        with pytest.raises(InputError, match=message):
            ImageClassifier(dict(model_name="resnet10t"), MEAN, STD, distillation=dict(kind="tokens", **options))
    TokenDistillation(arguments, MEAN, STD).check(torch.zeros(3, 64, 96))


def test_a_teacher_of_one_size(tmp_path):
    name, small = "swin_tiny_patch4_window7_224", dict(embed_dim=24, depths=(1, 1), num_heads=(2, 2))
    torch.save(timm.create_model(name, **small).state_dict(), tmp_path / "teacher.pth")
    arguments = dict(model_name=name, checkpoint_path=str(tmp_path / "teacher.pth"), **small)
    with pytest.raises(InputError, match="takes no images of 3 channels and 64x96 pixels: .*img_size resizes them"):
        TokenDistillation(arguments, MEAN, STD).check(torch.zeros(3, 64, 96))
    TokenDistillation(arguments, MEAN, STD, img_size=224).check(torch.zeros(3, 64, 96))


def test_too_few_tokens_are_told_once(taught, monkeypatch):
    said = []
    monkeypatch.setattr(token_distillation, "print_log", lambda text, **_: said.append(text))
    distillation = TokenDistillation(taught[1], MEAN, STD)
    images = torch.randn(1, 3, 64, 64)
    for _ in range(2):
        distillation.loss(images, torch.randn(1, 40, 4, 4), torch.zeros(()))
    assert len(said) == 1
    assert "a batch of 16 tokens tells little about 40 channels" in said[0]
    distillation.loss(images, torch.randn(1, 4, 4, 4), torch.zeros(()))


def test_a_detector_of_another_width_and_a_mean_of_other_channels(tmp_path):
    found = detector("faster_rcnn", "metala_vit_nano", 2, backbone_arguments=dict(embed_dim=32, depth=1, num_heads=2))
    torch.save({"state_dict": found.state_dict()}, tmp_path / "d.pth")
    wide = dict(model_name="metala_vit_nano", checkpoint_path=str(tmp_path / "d.pth"), embed_dim=64, depth=1)
    with pytest.raises(InputError, match="d.pth has another metala_vit_nano"):
        TokenDistillation(wide, MEAN, STD)
    right = dict(wide, embed_dim=32, num_heads=2)
    with pytest.raises(InputError, match="teacher_mean has 1 channels, teacher_std 3, expected 3"):
        TokenDistillation(right, MEAN, STD, teacher_mean=(0.5,))


def test_a_teacher_of_one_size_with_several_sizes(tmp_path):
    """Catches a run that ends at the first batch of another size."""
    name, small = "swin_tiny_patch4_window7_224", dict(embed_dim=24, depths=(1, 1), num_heads=(2, 2))
    torch.save(timm.create_model(name, **small).state_dict(), tmp_path / "teacher.pth")
    teacher = dict(model_name=name, checkpoint_path=str(tmp_path / "teacher.pth"), **small)
    model = ImageClassifier(dict(model_name="resnet10t"), MEAN, STD, distillation=dict(kind="tokens", teacher=teacher))
    model.check_sizes([224])
    with pytest.raises(InputError, match="the teacher takes no images of 3 channels and 192x192 pixels"):
        model.check_sizes([224, 192])
