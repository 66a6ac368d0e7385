"""Detectors and segmenters out of the checkpoints that runs have left."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from metala_vision.description import read_described

from .detector import detector
from .segmenter import segmenter

BUILDERS: dict[str, Callable[..., nn.Module]] = {"detection": detector, "segmentation": segmenter}


def load_dense(file: str | Path) -> tuple[nn.Module, dict]:
    """The detector or segmenter of a checkpoint, in evaluation mode on the CPU, and what the checkpoint says of itself.

    A detector takes a list of images [3, height, width] in [0, 1], normalises and resizes them itself, and finds boxes
    in their pixels; its label 1 is the first of `label_names`. A segmenter takes images [B, 3, height, width] that are
    normalised by the description's `mean` and `std`, and gives logits [B, num_classes, height, width].

    Args:
        file: `last.pth` or `best.pth` of a run. Nothing in it is run. Where the run kept a moving average of its
            weights, that is loaded.

    Returns:
        The model, and the description, whose keys are listed in `metala_vision.description`.

    Raises:
        InputError: no such file, no checkpoint, or one that does not say that it is a detector's or a segmenter's.
    """
    checkpoint, described = read_described(file, tuple(BUILDERS), "a detector's or a segmenter's")
    options = dict(described["options"])
    if described["task"] == "detection":
        options |= dict(image_mean=described["mean"], image_std=described["std"])
    model = BUILDERS[described["task"]](
        described["kind"],
        described["architecture"],
        described["num_classes"],
        backbone_arguments=described["model_args"],
        **options,
    )
    model.load_state_dict(checkpoint.get("state_dict_ema") or checkpoint["state_dict"])
    return model.eval(), described
