"""torchvision's detectors on a pyramid over any timm model."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet

from metala_vision.errors import InputError, near_matches

from .levels import StridedAnchors, StridedRoIAlign
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
    **options: Any,
) -> nn.Module:
    """One of torchvision's detectors, with its interface: images and targets in, losses or detections out.

    Args:
        kind: "faster_rcnn", "mask_rcnn", "retinanet" or "fcos".
        backbone: name of a timm model, or a model: see `FeatureMap`.
        num_classes: classes of objects. Their labels are 1 to `num_classes`, with every kind; 0 is the background.
        out_channels: channels of the pyramid.
        strides: strides of the pyramid; None is 4 to 64 for the two-stage detectors, 8 to 128 for the others.
        anchor_scale: side of an anchor over the stride of its level; None is 8 for the two-stage detectors, 4 (and two
            sizes up to the next level) for retinanet, 1 for fcos.
        min_size: pixels of the shorter side that images are resized to. If there are several, one is drawn for each
            training image, and the last one is for evaluation.
        max_size: the most pixels that the longer side may have.
        backbone_arguments: further arguments of `timm.create_model`, if `backbone` is a name.
        **options: options of torchvision's class, such as `box_detections_per_img` or `image_mean`.

    Raises:
        InputError: an unknown kind or model, or an argument that does not fit.
    """
    if kind not in DETECTORS:
        raise InputError(f"kind: got {kind!r}, expected one of {DETECTORS}")
    if not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(f"num_classes: got {num_classes!r}, expected at least 1 class of objects")
    known = set(inspect.signature(CLASSES[kind].__init__).parameters) - {"self", "backbone", "num_classes", "kwargs"}
    if unknown := sorted(set(options) - known):  # torchvision would take them and ignore them
        raise InputError(f"detector: {kind} has no option {unknown[0]!r}{near_matches(unknown[0], known)}")
    strides = tuple(strides or ((4, 8, 16, 32, 64) if kind in TWO_STAGE else (8, 16, 32, 64, 128)))
    pyramid = SimpleFeaturePyramid(backbone, out_channels, strides, **(backbone_arguments or {}))
    sizes = dict(min_size=min_size, max_size=max_size, size_divisible=max(32, pyramid.body.stride))
    fitted = _fitted(kind, strides, anchor_scale)
    try:
        model = CLASSES[kind](pyramid, num_classes + 1, **{**fitted, **sizes, **options})
    except (TypeError, ValueError) as error:
        raise InputError(f"detector: {kind}: {error}") from error
    if kind in TWO_STAGE:
        model.rpn.head.register_forward_hook(_in_float32)
        model.roi_heads.box_predictor.register_forward_hook(_in_float32)
    else:
        model.head.register_forward_hook(_in_float32)
        model.head.register_forward_hook(_without_background)
    return model


def _fitted(kind: str, strides: Sequence[int], scale: float | None) -> dict[str, nn.Module]:
    """The anchors, and the pooling of boxes and masks, for the levels of a pyramid."""
    if kind == "fcos":
        return dict(anchor_generator=StridedAnchors(strides, [[(scale or 1) * stride] for stride in strides], (1.0,)))
    if kind == "retinanet":
        sizes = [[(scale or 4) * stride * 2 ** (octave / 3) for octave in range(3)] for stride in strides]
        return dict(anchor_generator=StridedAnchors(strides, sizes, RATIOS))
    anchors = StridedAnchors(strides, [[(scale or 8) * stride] for stride in strides], RATIOS)
    fitted: dict[str, nn.Module] = dict(rpn_anchor_generator=anchors, box_roi_pool=StridedRoIAlign(strides, 7))
    if kind == "mask_rcnn":
        fitted["mask_roi_pool"] = StridedRoIAlign(strides, 14)
    return fitted


def _in_float32(module: nn.Module, arguments: tuple, output: Any) -> Any:
    """A head's output in float32: boxes are computed in its dtype, and near 1000 pixels bfloat16 has steps of 4."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {key: _in_float32(module, arguments, value) for key, value in output.items()}
    return type(output)(_in_float32(module, arguments, value) for value in output)


def _without_background(module: nn.Module, arguments: tuple, output: dict[str, Tensor]) -> dict[str, Tensor]:
    """Switches label 0 off: with a sigmoid for each class no background is needed, so it is never found nor learned."""
    return {**output, "cls_logits": F.pad(output["cls_logits"][..., 1:], (1, 0), value=-1e4)}
