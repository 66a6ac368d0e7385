"""The objects in a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from .found import ObjectFound
from .sources import Run
from .tiles import Tile, tiles

SAME = 0.5  # overlap, as intersection over union, at which two tiles have found one object


class Detecting:
    """Pictures -> the objects in them.

    Args:
        run: a list of images [C, H, W] in [0, 1] -> for each a dict with boxes, labels from 1, scores, and masks where
            the detector finds them.
        names: of the classes of objects.
        tile: side of the tiles of a picture in pixels; None takes pictures whole.
        min_score: least score of an object that is told.
    """

    def __init__(self, run: Run, names: Sequence[str], tile: int | None, min_score: float):
        self.run, self.names, self.tile, self.min_score = run, names, tile, min_score

    def prepare(self, pixels: np.ndarray) -> Tensor:
        """[height, width, C] uint8 -> the image [C, height, width] in [0, 1]."""
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255

    def find(self, prepared: Sequence[Tensor], batch: int) -> list[dict[str, Any]]:
        """What was found in each picture, at most `batch` tiles at a time."""
        parts = [(image, tiles(image.shape[1], image.shape[2], self.tile)) for image in prepared]
        cut = [image[:, tile.top : tile.bottom, tile.left : tile.right] for image, some in parts for tile in some]
        seen = [one for start in range(0, len(cut), batch) for one in self.run(cut[start : start + batch])]
        found = []
        for image, some in parts:
            mine, seen = seen[: len(some)], seen[len(some) :]
            found.append(dict(objects=self._merged(image.shape[1:], list(zip(some, mine)))))
        return found

    def _merged(self, size: Sequence[int], parts: Sequence[tuple[Tile, dict]]) -> list[ObjectFound]:
        """The objects of all tiles in pixels of the picture, the surest first."""
        chosen = []
        for number, (tile, seen) in enumerate(parts):
            boxes = seen["boxes"].cpu() + torch.tensor([tile.left, tile.top] * 2)
            for i, (score, box) in enumerate(zip(seen["scores"].tolist(), boxes.tolist())):
                inside = tile.answers_for((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
                if score >= self.min_score and inside:
                    chosen.append((score, box, int(seen["labels"][i]), number, i))
        chosen.sort(key=lambda one: -one[0])
        return [
            ObjectFound(
                self.names[label - 1],
                score,
                (box[0], box[1], box[2], box[3]),
                self._mask(size, parts[number][0], parts[number][1]["masks"][i])
                if "masks" in parts[number][1]
                else None,
            )
            for score, box, label, number, i in _once(chosen)
        ]

    def _mask(self, size: Sequence[int], tile: Tile, mask: Tensor) -> np.ndarray:
        """A mask [1, rows, columns] of probabilities of a tile, as that of the picture."""
        whole = np.zeros(tuple(size), bool)
        whole[tile.top : tile.bottom, tile.left : tile.right] = (mask[0] >= 0.5).cpu().numpy()
        return whole


def _once(chosen: Sequence[tuple]) -> list[tuple]:
    """Objects without those that another tile has found with a higher score; the choice within a tile is the model's.

    Args:
        chosen: (score, box, label, number of the tile, ...) of each, the highest score first.
    """
    if len({one[3] for one in chosen}) < 2:
        return list(chosen)
    overlap = box_iou(*[torch.tensor([one[1] for one in chosen])] * 2)
    kept: list[int] = []
    for i, (_, _, label, tile, *_) in enumerate(chosen):
        if not any(overlap[i, j] > SAME and chosen[j][2] == label and chosen[j][3] != tile for j in kept):
            kept.append(i)
    return [chosen[i] for i in kept]
