"""torchvision's detectors on our pyramid: they learn, take images of any size, and their labels mean the same."""

import pytest
import torch

from metala_vision.dense import DETECTORS, detector
from metala_vision.errors import InputError

SMALL = dict(embed_dim=32, depth=2, num_heads=1)
OPTIONS = dict(out_channels=32, min_size=64, max_size=128)


def build(kind: str, name: str = "metala_vit_nano", **options):
    return detector(kind, name, 2, backbone_arguments=SMALL, **{**OPTIONS, **options})


def targets(*boxes, size=(64, 80)):
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[top:bottom, left:right] = 1
    labels = torch.arange(len(boxes)) % 2 + 1
    return dict(boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels=labels, masks=masks)


@pytest.mark.parametrize("name", ["metala_vit_nano", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("kind", DETECTORS)
def test_losses_and_gradients(kind, name):
    """Also for an image without objects beside one with some, and images of two sizes."""
    model = build(kind, name).train()
    images = [torch.rand(3, 64, 80), torch.rand(3, 50, 64)]
    losses = model(images, [targets((5, 5, 30, 40), (40, 20, 75, 60)), targets(size=(50, 64))])
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("kind", DETECTORS)
def test_detections_lie_in_their_images(kind):
    options = {} if kind in ("faster_rcnn", "mask_rcnn") else dict(score_thresh=0.0)
    if not options:
        options = dict(box_score_thresh=0.0)
    model = build(kind, **options).eval()
    images = [torch.rand(3, 64, 80), torch.rand(3, 90, 50)]
    with torch.inference_mode():
        found = model(images)
    for image, one in zip(images, found):
        assert len(one["boxes"]) > 0
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"][:, 2] <= image.shape[2]).all()
        assert (one["boxes"][:, 3] <= image.shape[1]).all()
        assert ((one["labels"] >= 0) & (one["labels"] <= 2)).all()
        if kind == "mask_rcnn":
            assert one["masks"].shape == (len(one["boxes"]), 1, *image.shape[1:])


@pytest.mark.parametrize(
    "kind", [kind if kind != "mask_rcnn" else pytest.param(kind, marks=pytest.mark.slow) for kind in DETECTORS]
)
def test_it_overfits_two_boxes(kind):
    """Catches wrong anchors, strides or labels: with any of them two boxes are never found."""
    torch.manual_seed(0)
    options = dict(strides=(8, 16, 32)) if kind == "fcos" else dict(anchor_scale=4)
    model = build(kind, **options).train()
    image = torch.full((3, 64, 64), 0.5)
    image[0, 8:32, 8:32] = 1.0
    image[2, 30:62, 36:60] = 0.0
    target = targets((8, 8, 32, 32), (36, 30, 60, 62), size=(64, 64))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(60):
        loss = sum(model([image], [target]).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    with torch.inference_mode():
        found = model.eval()([image])[0]
    for label, box in zip(target["labels"], target["boxes"]):
        mine = found["boxes"][found["labels"] == label]
        assert len(mine), f"label {label} was not found"
        best = mine[found["scores"][found["labels"] == label].argmax()]
        assert (best - box).abs().max() < 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: detector("yolo", "metala_vit_nano", 2), "kind: got 'yolo', expected one of"),
        (lambda: detector("fcos", "metala_vit_nano", 0), "num_classes: got 0"),
        (lambda: detector("fcos", "metala_nano", 2), "backbone: unknown model 'metala_nano'"),
        (lambda: build("fcos", out_channels=16), "detector: fcos: num_channels .16. must be divisible"),
        (
            lambda: build("faster_rcnn", box_score_treshold=0.1),
            "detector: faster_rcnn has no option .box_score_treshold.",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=f"^{message}"):
        make()
