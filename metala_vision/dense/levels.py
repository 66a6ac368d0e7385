"""Anchors and pooling by given strides of a pyramid; torchvision would infer them from the sizes of images and maps."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper


class StridedAnchors(AnchorGenerator):
    """Anchors in float32 whose centres are multiples of the stride of their level.

    torchvision divides the side of the image by that of the map, and rounds down: 800 pixels of stride 64 have a map of
    13 rows, whose anchors would lie 61 pixels apart.

    Args:
        strides: strides of the levels.
        sizes: sides of the anchors of each level, in pixels.
        ratios: heights over widths of the anchors of every level.
    """

    def __init__(self, strides: Sequence[int], sizes: Sequence[Sequence[float]], ratios: Sequence[float]):
        super().__init__(tuple(map(tuple, sizes)), (tuple(ratios),) * len(strides))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """For every image the anchors [A, 4] of all levels."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([level.shape[-2:] for level in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


class StridedRoIAlign(MultiScaleRoIAlign):
    """RoI pooling that scales boxes by exactly one over the stride of a level, and chooses the level by their size.

    torchvision rounds these scales to powers of two, and keeps those of the first batch for all later ones.

    Args:
        strides: strides of the levels "0", "1", ...; boxes are pooled from strides of at most 32, or from the finest.
        output_size: rows and columns of what is pooled.
    """

    def __init__(self, strides: Sequence[int], output_size: int):
        used = [stride for stride in strides if stride <= 32] or list(strides[:1])
        super().__init__([str(i) for i in range(len(used))], output_size, sampling_ratio=2)
        self.scales = [1 / stride for stride in used]
        first, last = (round(math.log2(stride)) for stride in (used[0], used[-1]))
        self.map_levels = initLevelMapper(first, last, self.canonical_scale, self.canonical_level)
