"""Exported files behind the interface of the models that they come from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from metala_vision.deploy import Runtime, detections
from metala_vision.deploy.runtimes import described_runtime
from metala_vision.errors import InputError

CHOICE = ("score_thresh", "topk_candidates", "nms_thresh", "detections_per_img")


def open_exported(
    file: Path, name: str | None, threads: int | None, short_side: int | None
) -> tuple[Callable[[Any], Any], dict]:
    """A file in a runtime, and what it says of itself.

    Args:
        file: that `metala_vision.export` has written.
        name: of the runtime; None goes by the file's ending.
        threads: of the runtime; None is its own choice.
        short_side: see `ExportedDetector`.

    Raises:
        InputError: a file that does not say what it is, or a detector's or segmenter's for images of one size.
    """
    opened, described = described_runtime(file, name, threads)
    if described["task"] in ("detection", "segmentation") and "size" not in described["dynamic"]:
        height, width = described["input_size"][1:]
        raise InputError(f"source: {file} takes images of {height}x{width} pixels alone; export it with the size open")
    if described["task"] == "detection":
        return ExportedDetector(opened, described, short_side), described
    return lambda images: opened(images)[0], described


class ExportedDetector:
    """A detector's file behind torchvision's interface: a list of images in, a list of dicts out.

    Args:
        opened: the file.
        described: by itself.
        short_side: pixels that the shorter side of an image is resized to; None is the detector's own.
    """

    def __init__(self, opened: Runtime, described: dict, short_side: int | None):
        least, most = described["min_size"], described["max_size"]
        if short_side is not None:
            least, most = short_side, round(most * short_side / least)
        # It resizes alone, with a mean of 0 and a deviation of 1, and puts boxes back into the pixels of the image.
        plain = described["mean"], described["std"]
        self.resize = GeneralizedRCNNTransform(least, most, *plain, size_divisible=1).eval()
        self.opened = opened
        self.choice: dict[str, Any] = {key: described[key] for key in CHOICE}

    def __call__(self, images: Sequence[Tensor]) -> list[dict]:
        """[C, height, width] in [0, 1] -> boxes, labels from 1 and scores of each. Sizes differ: one by one."""
        found = []
        for image in images:
            resized, _ = self.resize([image])
            boxes, scores, levels = self.opened(resized.tensors)
            chosen = detections(boxes, scores, levels, **self.choice)
            found += self.resize.postprocess(chosen, resized.image_sizes, [(image.shape[-2], image.shape[-1])])
        return found
