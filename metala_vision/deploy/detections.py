"""The choice among a detector's candidates, which exported files leave to the caller."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from metala_vision.errors import InputError


def detections(
    boxes: Tensor,
    scores: Tensor,
    levels: Tensor,
    score_thresh: float,
    topk_candidates: int,
    nms_thresh: float,
    detections_per_img: int,
) -> list[dict[str, Tensor]]:
    """What torchvision's RetinaNet and FCOS make of their candidates, from the outputs of a file.

    A candidate is a box with one of its classes. Of each level of the pyramid the `topk_candidates` with the highest
    scores go on, and of those that overlap in one class, the highest.

    Args:
        boxes: float [B, A, 4]: left, top, right, bottom.
        scores: float [B, A, classes], probabilities.
        levels: integers [A], the level of a box, in ascending order.
        score_thresh: scores have to be higher.
        topk_candidates: how many of a level go on, at most.
        nms_thresh: of two boxes of a class whose intersection over union is higher the one with the lower score goes.
        detections_per_img: how many are found in an image, at most.

    Returns:
        For each image a dict with `boxes` [N, 4], `labels` [N], which count from 1, and `scores` [N], highest first.

    Raises:
        InputError: shapes that do not fit each other.
    """
    shapes = [tuple(x.shape) for x in (boxes, scores, levels)]
    if boxes.ndim != 3 or scores.ndim != 3 or shapes[0] != (*shapes[1][:2], 4) or shapes[2] != shapes[1][1:2]:
        raise InputError(
            f"boxes, scores, levels: got the shapes {', '.join(map(str, shapes))}, expected [B, A, 4], [B, A, classes] "
            f"and [A]"
        )
    counts = levels.unique_consecutive(return_counts=True)[1].tolist()
    found = []
    for image_boxes, image_scores in zip(boxes, scores):
        parts = [
            _candidates(*level, score_thresh, topk_candidates)
            for level in zip(image_boxes.split(counts), image_scores.split(counts))
        ]
        of_boxes, labels, of_scores = (torch.cat(part) for part in zip(*parts))
        kept = batched_nms(of_boxes, of_scores, labels, nms_thresh)[:detections_per_img]
        found.append(dict(boxes=of_boxes[kept], labels=labels[kept], scores=of_scores[kept]))
    return found


def _candidates(boxes: Tensor, scores: Tensor, score_thresh: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of one level: boxes, labels and scores of those that go on, the highest score first."""
    flat = scores.flatten()
    places = torch.where(flat > score_thresh)[0]
    best, order = flat[places].topk(min(most, len(places)))
    places = places[order]
    classes = scores.shape[1]
    return boxes[places // classes], places % classes + 1, best
