"""torchvision's detectors on our pyramid: they learn, take images of any size, and their labels mean the same."""

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from metala_vision.dense import DETECTORS, detector
from metala_vision.dense.levels import StridedRoIAlign
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
        assert ((one["labels"] >= 1) & (one["labels"] <= 2)).all()
        if kind == "mask_rcnn":
            assert one["masks"].shape == (len(one["boxes"]), 1, *image.shape[1:])


@pytest.mark.parametrize("kind", DETECTORS)
def test_anchors_lie_where_their_maps_do(kind):
    """Also where the stride does not divide the side: 13 rows of stride 64 in 800 pixels, not 61 pixels apart."""
    model = build(kind, strides=(8, 16, 32, 64, 128))
    anchors = (model.rpn if kind in ("faster_rcnn", "mask_rcnn") else model).anchor_generator
    image = torch.zeros(1, 3, 800, 1344)
    maps = list(model.backbone(image[:, :, :64, :64]).values())
    maps = [level.new_zeros(1, 1, -(-800 // s), -(-1344 // s)).bfloat16() for s, level in zip(anchors.strides, maps)]
    (found,) = anchors(ImageList(image, [(800, 1333)]), maps)
    assert found.dtype == torch.float32
    centres, start = (found[:, :2] + found[:, 2:]) / 2, 0
    for stride, level, each in zip(anchors.strides, maps, anchors.num_anchors_per_location()):
        count = each * level[0, 0].numel()
        x, y = centres[start : start + count].T
        assert torch.equal(x.unique(), torch.arange(level.shape[3]) * float(stride))
        assert torch.equal(y.unique(), torch.arange(level.shape[2]) * float(stride))
        start += count
    assert start == len(found)


@pytest.mark.parametrize("strides", [(8, 16, 32), (7, 14, 28)])
def test_boxes_are_pooled_where_they_are(strides):
    """From maps that hold x, the middle of a box has its x, also with strides like those of a patch of 14 pixels.

    As torchvision counts: a map's first pixel is at 0, not in the middle of its stride.
    """
    pool = StridedRoIAlign(strides, 2)
    maps = {}
    for i, stride in enumerate(strides):
        x = torch.arange(1344.0 // stride) * stride
        maps[str(i)] = x.expand(1, 1, 840 // stride, -1).contiguous()
    boxes = torch.tensor([[1200.0, 10, 1240, 50], [600, 100, 900, 700], [20, 300, 60, 420], [100, 0, 1000, 800]])
    pooled = pool(maps, [boxes], [(66, 66)]).mean((1, 2, 3))
    assert (pooled - (boxes[:, 0] + boxes[:, 2]) / 2).abs().max() < 1


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "mask_rcnn" else []) for kind in DETECTORS]
)
def test_boxes_are_float32_in_mixed_precision(kind):
    """bfloat16 has 4 pixels between two numbers at 1000: boxes on the right would be off by as much."""
    torch.manual_seed(0)
    options = {} if kind in ("faster_rcnn", "mask_rcnn") else dict(score_thresh=0.0)
    model = build(kind, **(options or dict(box_score_thresh=0.0)), min_size=64, max_size=1280).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (found,) = model([torch.rand(3, 64, 1280)])
    right = found["boxes"][found["boxes"][:, 0] > 600]
    assert found["boxes"].dtype == torch.float32
    assert len(right) > 3
    assert (right != right.bfloat16().float()).float().mean() > 0.5


@pytest.mark.long
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind in ("mask_rcnn", "fcos") else []) for kind in DETECTORS],
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
