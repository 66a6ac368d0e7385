"""mAP and IoU against what is known by hand."""

import numpy as np
import pytest
import torch

from metala_vision.data import ShapesDetection, ShapesSegmentation
from metala_vision.data.drawing import objects_on
from metala_vision.engine.metrics.detection import CocoMetric
from metala_vision.engine.metrics.segmentation import SegmentationMetric, intersection_over_union
from metala_vision.errors import InputError

pytest.importorskip("pycocotools")


def target(index, boxes, labels, crowd=None, masks=None, image_id=None):
    out = dict(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        iscrowd=torch.tensor(crowd or [False] * len(labels)),
        image_id=index if image_id is None else image_id,
        index=index,
        size=(100, 120),
    )
    return out if masks is None else {**out, "masks": masks}


def found(boxes, labels, scores, masks=None):
    out = dict(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )
    return out if masks is None else {**out, "masks": masks}


def scores(*pairs):
    metric = CocoMetric()
    for one, other in pairs:
        metric.process({}, [dict(found=one, target=other)])
    return metric, metric.evaluate(len(pairs))


A, B = [10, 10, 50, 50], [60, 20, 100, 80]


def test_everything_found():
    _, result = scores((found([A, B], [1, 2], [0.9, 0.8]), target(0, [A, B], [1, 2])))
    assert result["mAP"] == pytest.approx(1.0)
    assert result["mAP50"] == pytest.approx(1.0)
    assert "mAP_small" not in result, "there are no small objects"


def test_a_shifted_box_counts_up_to_its_overlap():
    """A box shifted by a tenth overlaps by 0.9/1.1 = 0.818: right at 0.5 to 0.8, that is 7 of 10 thresholds."""
    _, result = scores((found([[14, 10, 54, 50]], [1], [0.9]), target(0, [A], [1])))
    assert result["mAP50"] == pytest.approx(1.0)
    assert result["mAP75"] == pytest.approx(1.0)
    assert result["mAP"] == pytest.approx(0.7)


def test_a_false_one_that_is_surer():
    """Precision 1/2 at every recall."""
    _, result = scores((found([B, A], [1, 1], [0.9, 0.8]), target(0, [A], [1])))
    assert result["mAP50"] == pytest.approx(0.5)


def test_a_wrong_class_is_wrong():
    metric, result = scores((found([A, B], [2, 2], [0.9, 0.8]), target(0, [A, B], [1, 2])))
    assert metric.per_class["bbox"][1] == 0.0
    assert metric.per_class["bbox"][2] == pytest.approx(0.5)
    assert result["mAP"] == pytest.approx(0.25)


def test_crowds_and_empty_images():
    """A crowd found or not changes nothing; what is found where nothing is counts against."""
    crowd = target(0, [A, B], [1, 1], [False, True])
    _, result = scores((found([A, B], [1, 1], [0.9, 0.95]), crowd))
    assert result["mAP"] == pytest.approx(1.0)
    empty = (found([A], [1], [0.99]), target(1, [], []))
    _, result = scores((found([A], [1], [0.9]), target(0, [A], [1])), empty)
    assert result["mAP50"] == pytest.approx(0.5)
    _, result = scores((found([], [], []), target(0, [A], [1])))
    assert result["mAP"] == 0.0
    _, result = scores((found([], [], []), target(0, [], [])))
    assert result == {"mAP": 0.0, "mAP50": 0.0}


def test_masks():
    """The box is right, the mask covers half of it: boxes 1, masks 1 at 0.5 alone."""
    whole = torch.zeros(1, 100, 120, dtype=torch.uint8)
    whole[:, 10:50, 10:50] = 1
    half = whole.float()[:, None].clone()
    half[:, :, 30:] = 0
    metric, result = scores((found([A], [1], [0.9], half), target(0, [A], [1], masks=whole)))
    assert result["mAP"] == pytest.approx(1.0)
    assert result["mask_mAP50"] == pytest.approx(1.0)
    assert result["mask_mAP75"] == 0.0
    assert set(metric.per_class) == {"bbox", "segm"}


def test_sizes_of_objects():
    """A box of 40x40 pixels is medium, unless the set says that 500 of them are the object's: then it is small."""
    _, result = scores((found([A], [1], [0.9]), target(0, [A], [1])))
    assert result["mAP_medium"] == pytest.approx(1.0)
    assert "mAP_small" not in result
    _, result = scores((found([A], [1], [0.9]), {**target(0, [A], [1]), "area": torch.tensor([500.0])}))
    assert result["mAP_small"] == pytest.approx(1.0)
    assert "mAP_medium" not in result


def test_boxes_found_are_as_large_as_they_are_whatever_their_masks():
    """A false box that is medium counts among the medium ones alone, though its mask is small."""
    whole = torch.zeros(1, 100, 120, dtype=torch.uint8)
    whole[:, 10:50, 10:50] = 1
    small = torch.zeros(2, 1, 100, 120)
    small[:, :, 10:20, 10:20] = 1
    _, result = scores((found([B, A], [1, 1], [0.95, 0.9], small), target(0, [A], [1], masks=whole)))
    assert result["mAP_medium"] == pytest.approx(0.5)


def test_masks_are_scored_where_none_is_found():
    whole = torch.zeros(1, 100, 120, dtype=torch.uint8)
    whole[:, 10:50, 10:50] = 1
    _, result = scores((found([], [], [], torch.zeros(0, 1, 100, 120)), target(0, [A], [1], masks=whole)))
    assert result["mask_mAP"] == 0.0


def test_results_in_coco_form(tmp_path):
    """With the set's own ids of images and categories, and boxes as left, top, width and height."""
    data = ShapesDetection("val", images=2, size=64)
    data.categories = [11, 22, 33]
    sample = data[0]["target"]
    metric = CocoMetric(pictures=1, min_score=0.0)
    one = found(sample["boxes"].tolist(), sample["labels"].tolist(), [0.5] * len(sample["labels"]))
    metric.process({}, [dict(found=one, target={**sample, "image_id": 777})])
    metric.evaluate(1)
    report = metric.report(data, tmp_path)
    import json

    entries = json.loads((tmp_path / "predictions.json").read_text())
    assert {entry["image_id"] for entry in entries} == {777}
    assert [entry["category_id"] for entry in entries] == [11 * label for label in sample["labels"].tolist()]
    left, top, right, bottom = sample["boxes"][0].tolist()
    assert entries[0]["bbox"] == [left, top, right - left, bottom - top]
    assert report["images"] == 1
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["00000.png"]


def test_overlapping_masks_are_not_drawn_black():
    masks = torch.zeros(2, 500, 500, dtype=torch.uint8)
    masks[0, 100:300, 100:300] = 1
    masks[1, 200:400, 200:400] = 1
    objects = dict(boxes=torch.tensor([[100.0, 100, 300, 300], [200, 200, 400, 400]]), labels=torch.tensor([1, 2]))
    picture = objects_on(torch.full((3, 500, 500), 255, dtype=torch.uint8), {**objects, "masks": masks}, "ab")
    once, twice, ground = picture[:, 150, 150], picture[:, 250, 250], picture[:, 50, 50]
    assert (ground == 255).all()
    assert once.float().mean() < 255
    assert once.float().mean() > twice.float().mean()
    assert twice.max() - twice.min() > 10, "a mixture of their colours, no grey"


def test_intersection_over_union_by_hand():
    """Class 3 occurs nowhere: it does not count."""
    true = np.array([0, 0, 1, 1, 2, 2, 2, 255])
    seen = np.array([0, 1, 1, 1, 2, 0, 2, 1])
    metric = SegmentationMetric(pictures=1)
    metric.dataset_meta = dict(classes="abcd")
    metric.process({}, [dict(found=torch.tensor(seen)[None], mask=torch.tensor(true)[None], index=0)])
    result = metric.evaluate(1)
    expected = [1 / 3, 2 / 3, 2 / 3]
    assert result["mIoU"] == pytest.approx(np.mean(expected))
    assert result["accuracy"] == pytest.approx(5 / 7)
    overlap = intersection_over_union(metric.confusion)
    assert overlap[:3] == pytest.approx(expected)
    assert np.isnan(overlap[3])


def test_segmentation_report(tmp_path):
    data = ShapesSegmentation("val", images=3, size=64)
    metric = SegmentationMetric(pictures=2)
    metric.dataset_meta = data.metainfo
    for i in range(3):
        metric.process({}, [dict(found=data[i]["mask"], mask=data[i]["mask"], index=i)])
    assert len(metric.results) == 1, "a count of 150 x 150 classes for every image would take gigabytes"
    assert metric.evaluate(3) == dict(mIoU=1.0, accuracy=1.0)
    assert metric.report(data, tmp_path)["images"] == 3
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["00000.png", "00001.png"]


def test_scores_of_masks_are_those_of_a_split_that_has_them(tmp_path):
    """Catches a score to choose the best weights by that comes to nothing after the first epoch."""
    data = ShapesDetection("val", images=3, size=64)
    assert "mask_mAP" in CocoMetric().names(data)
    data.objects = [found._replace(masks=None) for found in data.objects]
    assert CocoMetric().names(data) == ("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large")


def test_bad_input():
    for kind in (CocoMetric, SegmentationMetric):
        with pytest.raises(InputError, match="pictures: got -1"):
            kind(pictures=-1)
