"""The scores that evaluations give: the name of each, and how many of its digits are shown."""

from typing import NamedTuple


class Score(NamedTuple):
    """How a score is written."""

    name: str
    digits: int
    unit: str = ""


SCORES = {
    "top1": Score("top-1", 2, " percent"),
    "top5": Score("top-5", 2, " percent"),
    "mAP": Score("mAP", 3),
    "mAP50": Score("mAP50", 3),
    "mAP75": Score("mAP75", 3),
    "mask_mAP": Score("mask mAP", 3),
    "mask_mAP50": Score("mask mAP50", 3),
    "mIoU": Score("mIoU", 3),
    "accuracy": Score("pixels right", 3),
    "answers": Score("answers right", 2, " percent"),
    "sequences": Score("sequences all right", 2, " percent"),
    "cosine": Score("cosine", 2, " percent"),
    "probe": Score("linear probe", 2, " percent"),
    "prefix_cosine": Score("cosine before the patches", 2, " percent"),
    "loss": Score("loss", 4),
}


def best_known(result: dict) -> str:
    """The first score that a result has, as a few words."""
    for key, score in SCORES.items():
        if key in result:
            return f"{score.name} {result[key]:.{score.digits}f}{score.unit}"
    return "no score"
