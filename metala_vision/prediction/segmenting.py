"""The classes of a picture's pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metala_vision.dense import class_map

from .found import Area
from .sources import Run


class Segmenting:
    """Pictures -> a class for each pixel.

    Args:
        run: normalised images [1, C, H, W] -> logits [1, num_classes, H, W].
        described: by the model, see `metala_vision.description`.
        names: of the classes.
        img_size: pixels that the shorter side is resized to; None is the model's own, or with `tile` none at all.
        tile: side of the windows that the picture is run in, in pixels of what it is resized to; None is the model's
            own.
    """

    def __init__(self, run: Run, described: dict, names: Sequence[str], img_size: int | None, tile: int | None):
        self.run, self.names = run, names
        self.mean, self.std = (torch.tensor(described[key]).view(-1, 1, 1) for key in ("mean", "std"))
        own = described.get("short_side") if tile is None else None
        self.short_side = img_size if img_size is not None else own
        self.window = tile if tile is not None else described.get("window")
        self.stride = max(1, 3 * tile // 4) if tile is not None else described.get("stride")

    def prepare(self, pixels: np.ndarray) -> Tensor:
        """[height, width, C] uint8 -> a normalised image [C, height, width]."""
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return (image.float() / 255 - self.mean) / self.std

    def find(self, prepared: Sequence[Tensor], batch: int) -> list[dict[str, Any]]:
        """What was found in each picture. They are run one by one, since their sizes differ."""
        found, dtype = [], np.uint8 if len(self.names) <= 256 else np.int32
        for image in prepared:
            labels = class_map(self.run, image[None], self.short_side, self.window, self.stride).cpu()
            shares = torch.bincount(labels.flatten(), minlength=len(self.names)) / labels.numel()
            order = [i for i in shares.argsort(descending=True, stable=True).tolist() if shares[i] > 0]
            areas = [Area(self.names[i], float(shares[i])) for i in order]
            found.append(dict(areas=areas, class_map=labels.numpy().astype(dtype)))
        return found
