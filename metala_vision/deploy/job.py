"""What is to be written of a model, whatever the format."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

PYRAMID = 512  # pixels


class Job(NamedTuple):
    """What a file is to take and to give.

    Attributes:
        example: shape of the images that the model is traced with.
        dynamic: what is left open, out of "batch" and "size".
        opset: of ONNX.
        described: what the file says of its model; empty where nothing is known.
        outputs: their names.
        precision: "float32", "float16" or "int8", see `precision`.
        calibration: prepared images for "int8".
    """

    example: tuple[int, ...]
    dynamic: tuple[str, ...]
    opset: int
    described: dict
    outputs: list[str]
    precision: str = "float32"
    calibration: Sequence[Tensor] | None = None

    @property
    def open_axes(self) -> dict[int, str]:
        """Names of the open axes of the images."""
        axes = {0: "batch"} if "batch" in self.dynamic else {}
        return axes | ({2: "height", 3: "width"} if "size" in self.dynamic else {})

    def program(self, model: nn.Module) -> torch.export.ExportedProgram:
        """The model as torch.export has it. Raises what torch's exporter raises, which may be anything."""
        _, channels, height, width = self.example
        if "size" in self.dynamic and self.described.get("task") in ("detection", "segmentation"):
            # A map of a single step, which a pyramid has of a small image, would be taken for one that always has one.
            height, width = max(height, PYRAMID), max(width, PYRAMID)
        # The sides of the example differ: equal ones would be taken for one size.
        width += 32 if "size" in self.dynamic and height == width else 0
        image = torch.zeros(self.example[0], channels, height, width)
        sides = dict.fromkeys(self.open_axes, torch.export.Dim.DYNAMIC)
        return torch.export.export(model, (image,), dynamic_shapes=(sides,))


def first_line(error: Exception) -> str:
    """What the cause of all says, in a line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[0] if str(cause).strip() else ''}"
