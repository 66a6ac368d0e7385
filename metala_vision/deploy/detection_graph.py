"""A one-stage detector as a graph has it: every box with its scores, before any choice that depends on the image."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.image_list import ImageList

from metala_vision.dense.segmenter import padded

OUTPUTS = ("boxes", "scores", "levels")


class DetectionGraph(nn.Module):
    """All candidates of a detector; `metala_vision.deploy.detections` chooses among them.

    Images [B, C, height, width] in [0, 1], resized already, come in, and are normalised and padded as the detector does
    it. Of A candidates it gives

    - boxes [B, A, 4] in pixels of these images (left, top, right, bottom), which end with the image,
    - scores [B, A, classes], probabilities without the background,
    - levels [A], the number of the pyramid's level that a candidate comes from.

    Args:
        detector: of `metala_vision.dense.detector`, of the kind "retinanet" or "fcos".
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: RetinaNet | FCOS):
        super().__init__()
        self.detector, self.training = detector, detector.training
        for name, values in (("mean", detector.transform.image_mean), ("std", detector.transform.image_std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, C, height, width] -> boxes, scores and levels."""
        height, width = images.shape[-2:]
        x = padded((images - self.mean) / self.std, self.detector.transform.size_divisible)
        maps = list(self.detector.backbone(x).values())
        heads = self.detector.head(maps)
        generator = self.detector.anchor_generator
        anchors = generator(ImageList(x, [(height, width)]), maps)[0]
        codes = heads["bbox_regression"]
        scores = _sigmoid(heads["cls_logits"][..., 1:])
        if isinstance(self.detector, FCOS):
            scores = torch.sqrt(scores * _sigmoid(heads["bbox_ctrness"]))
            boxes = self.detector.box_coder.decode(codes, anchors)
        else:
            flat = self.detector.box_coder.decode_single(codes.flatten(0, 1), anchors.repeat(codes.shape[0], 1))
            boxes = flat.reshape(codes.shape)
        ends = torch.cat([torch.full((1,), side, dtype=torch.float32) for side in (width, height, width, height)])
        counts = [x.shape[2] * x.shape[3] * each for x, each in zip(maps, generator.num_anchors_per_location())]
        levels = torch.cat([torch.full((count,), level) for level, count in enumerate(counts)])
        return torch.minimum(boxes.clamp(min=0), ends), scores, levels

    def described(self) -> dict:
        """What a file says of the detector, see `dense_graph`."""
        detector, transform = self.detector, self.detector.transform
        return dict(
            task="detection",
            kind=type(detector).__name__.lower(),
            num_classes=detector.head.classification_head.num_classes - 1,
            interpolation="bilinear",
            mean=[0.0] * len(self.mean),
            std=[1.0] * len(self.std),
            min_size=transform.min_size[-1],
            max_size=transform.max_size,
            score_thresh=detector.score_thresh,
            topk_candidates=detector.topk_candidates,
            nms_thresh=detector.nms_thresh,
            detections_per_img=detector.detections_per_img,
        )


def _sigmoid(x: Tensor) -> Tensor:
    """As torch computes it. onnxruntime's own is bounded below at exp(-18), of which a square root is 1e-4."""
    return 1 / (1 + torch.exp(-x))
