"""Detectors and segmenters as files have them, and what the files say of them."""

from typing import Any

from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from metala_vision.dense.segmenter import PlainSegmenter, PyramidSegmenter
from metala_vision.errors import InputError

from .detection_graph import DetectionGraph

DENSE = (RetinaNet, FCOS, GeneralizedRCNN, PyramidSegmenter, PlainSegmenter)


def trunk_of(model: nn.Module) -> nn.Module | None:
    """The timm model in a detector or a segmenter; None in a detector that `metala_vision.dense` has not made."""
    return getattr(model if isinstance(model, PyramidSegmenter | PlainSegmenter) else model.backbone, "trunk", None)


def dense_graph(model: nn.Module, described: dict) -> tuple[nn.Module, dict]:
    """What is written of a detector or a segmenter.

    A detector's file normalises the images itself, so that the `mean` that it has is 0 and the `std` 1. Beside the
    keys of `metala_vision.description` it is described by `min_size` and `max_size`, which its images are resized to
    (bilinearly, without antialiasing, the shorter side to the one unless the longer one exceeds the other), and by the
    arguments of `detections`: `score_thresh`, `topk_candidates`, `nms_thresh` and `detections_per_img`.

    Args:
        model: of `metala_vision.dense`.
        described: what is known of it.

    Returns:
        A segmenter as it is, or a `DetectionGraph`; and its description.

    Raises:
        InputError: a detector of two stages.
    """
    if isinstance(model, GeneralizedRCNN):
        kind = "mask_rcnn" if model.roi_heads.has_mask() else "faster_rcnn"
        raise InputError(
            f"source: a {kind} chooses boxes within the network, in an order that the last digit of a score decides, "
            f"so that its file could not be held against it number by number; of detectors these go: retinanet, fcos"
        )
    if isinstance(model, RetinaNet | FCOS):
        graph = DetectionGraph(model)
        return graph, {**described, **graph.described()}
    kind = type(model.decoder).__name__.removesuffix("Decoder").lower()
    head: Any = model.head
    *_, last = (module for module in head.modules() if isinstance(module, nn.Conv2d))
    return model, {**described, "task": "segmentation", "kind": kind, "num_classes": last.out_channels}
