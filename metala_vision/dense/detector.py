"""torchvision's detectors on a pyramid over any timm model."""

import inspect
from collections.abc import Sequence

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from metala_vision.errors import InputError, near_matches

from .pyramid import SimpleFeaturePyramid

CLASSES = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN, "retinanet": RetinaNet, "fcos": FCOS}
DETECTORS = tuple(CLASSES)
TWO_STAGE = ("faster_rcnn", "mask_rcnn")
RATIOS = (0.5, 1.0, 2.0)


def detector(
    kind: str,
    backbone: str | nn.Module,
    num_classes: int,
    out_channels: int = 256,
    strides: Sequence[int] | None = None,
    anchor_scale: float | None = None,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    backbone_arguments: dict | None = None,
    **options,
) -> nn.Module:
    """One of torchvision's detectors, with its interface: images and targets in, losses or detections out.

    Args:
        kind: "faster_rcnn", "mask_rcnn", "retinanet" or "fcos".
        backbone: name of a timm model, or a model: see `FeatureMap`.
        num_classes: of objects. Their labels are 1 to `num_classes`, with every kind; 0 is the background.
        out_channels: of the pyramid.
        strides: of the pyramid; None is 4 to 64 for the two-stage detectors, 8 to 128 for the others.
        anchor_scale: side of an anchor over the stride of its level; None is 8 for the two-stage detectors, 4 (and two
            sizes up to the next level) for retinanet, 1 for fcos.
        min_size: pixels of the shorter side that images are resized to; of several, one is drawn for each image of the
            training, and the last one is for evaluation.
        max_size: pixels that the longer side may have.
        backbone_arguments: of `timm.create_model`, with a name.
        **options: of torchvision's class, such as `box_detections_per_img` or `image_mean`.

    Raises:
        InputError: an unknown kind or model, or an argument that does not fit.
    """
    if kind not in DETECTORS:
        raise InputError(f"kind: got {kind!r}, expected one of {DETECTORS}")
    if not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(f"num_classes: got {num_classes!r}, expected at least 1 class of objects")
    known = set(inspect.signature(CLASSES[kind].__init__).parameters) - {"self", "backbone", "num_classes", "kwargs"}
    if unknown := sorted(set(options) - known):  # torchvision would take them and do nothing
        raise InputError(f"detector: {kind} has no option {unknown[0]!r}{near_matches(unknown[0], known)}")
    strides = tuple(strides or ((4, 8, 16, 32, 64) if kind in TWO_STAGE else (8, 16, 32, 64, 128)))
    pyramid = SimpleFeaturePyramid(backbone, out_channels, strides, **(backbone_arguments or {}))
    build = {"faster_rcnn": _rcnn, "mask_rcnn": _rcnn, "retinanet": _retinanet, "fcos": _fcos}[kind]
    sizes = dict(min_size=min_size, max_size=max_size, size_divisible=max(32, pyramid.body.stride))
    try:
        return build(kind, pyramid, num_classes + 1, strides, anchor_scale, {**sizes, **options})
    except (TypeError, ValueError) as error:
        raise InputError(f"detector: {kind}: {error}") from error


def _rcnn(
    kind: str,
    pyramid: SimpleFeaturePyramid,
    labels: int,
    strides: Sequence[int],
    scale: float | None,
    options: dict,
) -> nn.Module:
    levels = [str(i) for i, stride in enumerate(strides) if stride <= 32]  # boxes are pooled from these
    options = {"box_roi_pool": MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2), **options}
    if kind == "mask_rcnn":
        options = {"mask_roi_pool": MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2), **options}
    anchors = AnchorGenerator(tuple(((scale or 8) * stride,) for stride in strides), (RATIOS,) * len(strides))
    return CLASSES[kind](pyramid, labels, rpn_anchor_generator=anchors, **options)


def _retinanet(
    kind: str,
    pyramid: SimpleFeaturePyramid,
    labels: int,
    strides: Sequence[int],
    scale: float | None,
    options: dict,
) -> nn.Module:
    sizes = tuple(tuple((scale or 4) * stride * 2 ** (octave / 3) for octave in range(3)) for stride in strides)
    anchors = AnchorGenerator(sizes, (RATIOS,) * len(strides))
    return RetinaNet(pyramid, labels, anchor_generator=anchors, **options)


def _fcos(
    kind: str,
    pyramid: SimpleFeaturePyramid,
    labels: int,
    strides: Sequence[int],
    scale: float | None,
    options: dict,
) -> nn.Module:
    anchors = AnchorGenerator(tuple(((scale or 1) * stride,) for stride in strides), ((1.0,),) * len(strides))
    return FCOS(pyramid, labels, anchor_generator=anchors, **options)
