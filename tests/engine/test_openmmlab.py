"""The backbone and the neck as OpenMMLab's configs build them."""

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from small_runs import ROOT

import metala_vision.engine.openmmlab  # noqa: F401  (registers them)
from metala_vision.errors import InputError

SMALL = dict(embed_dim=32, depth=4, num_heads=1)


def build(**options):
    return MODELS.build(dict(type="MetaLAViT", arch=SMALL, patch_size=8, **options))


@pytest.mark.parametrize("name", ["mask_rcnn", "upernet"])
def test_the_example_configs(name):
    config = Config.fromfile(ROOT / "configs/openmmlab" / f"{name}_metala_vit_tiny.py")
    backbone, neck = MODELS.build(config.model.backbone), MODELS.build(config.model.neck)
    maps = neck(backbone(torch.randn(1, 3, 70, 96)))
    strides = (4, 8, 16, 32, 64)[: len(maps)]
    assert [tuple(x.shape[1:]) for x in maps] == [(256, -(-80 // s), -(-96 // s)) for s in strides]


@pytest.mark.parametrize("arch", ["nano", "tiny", "small"])
def test_the_models_are_those_of_timm(arch):
    ours = MODELS.build(dict(type="MetaLAViT", arch=arch)).eval()
    model = timm.create_model(f"metala_vit_{arch}", num_classes=0).eval()
    model.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 48)
    expected = model.forward_intermediates(x, indices=[-1], norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(ours(x)[0], expected)


def test_out_indices():
    model = build(out_indices=(0, -2)).eval()
    assert len(model.blocks) == 3
    assert [tuple(x.shape) for x in model(torch.randn(2, 3, 40, 33))] == [(2, 32, 5, 5)] * 2
    plain = build(out_indices=2, out_norm=False)
    assert isinstance(plain.norm, torch.nn.Identity), "unused parameters stop distributed training"
    sum(x.square().mean() for x in plain(torch.randn(1, 3, 32, 32))).backward()
    assert all(p.grad is not None for p in plain.parameters())


def test_frozen_stages():
    model = build(frozen_stages=2, drop_path_rate=0.5).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(("patch_embed", "blocks.0.", "blocks.1."))}
    assert not model.blocks[1].training
    assert model.blocks[2].training
    assert not {n for n, p in build(frozen_stages=0).named_parameters() if not p.requires_grad and "blocks" in n}


def test_with_cp():
    torch.manual_seed(3)
    plain, saving = build(), build(with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 32, 32)
    for model in (plain, saving):
        model(x)[0].square().mean().backward()
    for one, other in zip(plain.parameters(), saving.parameters()):
        torch.testing.assert_close(one.grad, other.grad)


def test_pretrained(tmp_path):
    """From a checkpoint of a classifier, when the model around it initialises its parts."""
    classifier = timm.create_model("metala_vit_nano", patch_size=8, num_classes=5, **SMALL)
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "a.pth")
    model = build(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "a.pth")))
    model.init_weights()
    assert torch.equal(model.blocks[3].mlp.fc1.weight, classifier.blocks[3].mlp.fc1.weight)
    older = {k: v for k, v in classifier.state_dict().items() if k != "nominal_grid" and "decay_bias" not in k}
    torch.save(older, tmp_path / "older.pth")
    model = build(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "older.pth")))
    model.init_weights()
    assert torch.equal(model.blocks[3].mlp.fc1.weight, classifier.blocks[3].mlp.fc1.weight)
    assert torch.count_nonzero(model.blocks[3].mixer.decay_bias) == 0
    torch.save({"patch_embed.proj.bias": torch.zeros(32)}, tmp_path / "b.pth")
    with pytest.raises(InputError, match="init_cfg: .*b.pth does not fit; missing or of another shape: .*weight"):
        build(init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "b.pth"))).init_weights()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(arch="huge"), "arch: got 'huge'"),
        (dict(out_indices=9), "out_indices: got 9, expected numbers of the 4 blocks"),
        (dict(out_indices=()), "out_indices: got"),
        (dict(frozen_stages=5), "frozen_stages: got 5, expected -1 to 4"),
        (dict(init_cfg=dict(type="Xavier")), "init_cfg: got"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        MODELS.build({**dict(type="MetaLAViT", arch=SMALL), **options})
