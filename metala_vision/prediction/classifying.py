"""The classes of whole pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metala_vision.data.preparation import Preparation
from metala_vision.errors import InputError

from .found import ClassFound
from .sources import Run
from .tiles import tiles


class Classifying:
    """Pictures -> their likeliest classes, prepared as the model's test prepares images.

    Args:
        run: normalised images [B, C, H, W] -> logits [B, num_classes].
        described: by the model, see `metala_vision.description`.
        names: of the classes.
        img_size: height and width, or the side of the square, that it sees; None is the model's own.
        tile: side of the tiles of a picture in pixels, whose probabilities are averaged; None takes pictures whole.
        top_k: classes that are told.
    """

    def __init__(
        self,
        run: Run,
        described: dict,
        names: Sequence[str],
        img_size: int | tuple[int, int] | None,
        tile: int | None,
        top_k: int,
    ):
        self.preparation = Preparation(described, img_size)
        self.run, self.names, self.tile = run, names, tile
        self.top_k = min(top_k, len(names))

    def prepare(self, pixels: np.ndarray) -> Tensor:
        """[height, width, C] uint8 -> one normalised image for each tile [T, C, H, W]."""
        parts = tiles(pixels.shape[0], pixels.shape[1], self.tile)
        return torch.stack([self.preparation(pixels[part.top : part.bottom, part.left : part.right]) for part in parts])

    def find(self, prepared: Sequence[Tensor], batch: int) -> list[dict[str, Any]]:
        """What was found in each picture, at most `batch` images at a time."""
        steps = torch.cat(list(prepared)).split(batch)
        logits = torch.cat([self.run(images).float().cpu() for images in steps])
        if logits.shape[1] != len(self.names):
            raise InputError(f"source: it gives {logits.shape[1]} numbers, and names {len(self.names)} classes")
        found = []
        for shares in logits.softmax(1).split([len(images) for images in prepared]):
            probabilities, indices = shares.mean(0).topk(self.top_k)
            pairs = zip(indices.tolist(), probabilities.tolist())
            found.append(dict(classes=[ClassFound(self.names[index], share) for index, share in pairs]))
        return found
