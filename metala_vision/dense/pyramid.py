"""ViTDet's simple feature pyramid (arXiv 2203.16527): every level from the one map of a plain backbone."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from metala_vision.errors import InputError

from .trunk import FeatureMap, create_trunk

STRIDES = (4, 8, 16, 32)


class PyramidNeck(nn.Module):
    """Maps of several strides from one map.

    A finer level comes from transposed convolutions of two by two, each halving the channels, a coarser one from the
    maximum over its area. A 1x1 and a 3x3 convolution follow in every level, with LayerNorm after each.

    Args:
        in_channels: channels of the map.
        in_stride: image pixels of one step of the map.
        out_channels: channels of every level.
        strides: strides of the levels, each a power of two times `in_stride`, finer or coarser.

    Raises:
        InputError: strides that cannot be made from `in_stride`.
    """

    def __init__(self, in_channels: int, in_stride: int, out_channels: int = 256, strides: Sequence[int] = STRIDES):
        super().__init__()
        if not strides or list(strides) != sorted(set(strides)):
            raise InputError(f"strides: got {tuple(strides)}, expected ascending ones, none twice")
        self.strides = tuple(strides)
        self.out_channels = out_channels
        self.levels = nn.ModuleList(_level(in_channels, in_stride, out_channels, stride) for stride in strides)

    def forward(self, x: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """[B, in_channels, rows, columns] of an image of `size` -> per stride [B, out_channels, ceil(height / stride),
        ceil(width / stride)]: rows and columns that lie in the image's padding alone are cut off.
        """
        maps = []
        for stride, level in zip(self.strides, self.levels):
            rows, cols = ((side + stride - 1) // stride for side in size)  # graphs of ONNX round -side / stride up
            maps.append(level(x)[:, :, :rows, :cols])
        return maps


class SimpleFeaturePyramid(nn.Module):
    """A backbone with a pyramid, as torchvision's detectors take it.

    Args:
        backbone: name of a timm model, or a model: see `FeatureMap`.
        out_channels: channels of every level.
        strides: strides of the levels.
        index: number of the block or stage whose map is used.
        **arguments: further arguments of `timm.create_model`, if `backbone` is a name.

    Raises:
        InputError: an argument does not fit; the message names it.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        out_channels: int = 256,
        strides: Sequence[int] = STRIDES,
        index: int = -1,
        **arguments: Any,
    ):
        super().__init__()
        self.body = FeatureMap(create_trunk(backbone, **arguments), index)
        self.neck = PyramidNeck(self.body.channels, self.body.stride, out_channels, strides)

    @property
    def out_channels(self) -> int:
        """Channels of every level."""
        return self.neck.out_channels

    @property
    def trunk(self) -> nn.Module:
        """The timm model."""
        return self.body.trunk

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """[B, in_chans, height, width] -> "0", "1", ...: [B, out_channels, ceil(height / stride), ...] per stride."""
        maps = self.neck(self.body(x), (x.shape[-2], x.shape[-1]))
        return OrderedDict((str(i), level) for i, level in enumerate(maps))


def _level(in_channels: int, in_stride: int, out_channels: int, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = in_channels
    if stride > in_stride:
        factor, rest = divmod(stride, in_stride)
        if rest or factor & (factor - 1):
            raise InputError(f"strides: {stride} cannot be made from a map of stride {in_stride}, only powers of two")
        layers.append(nn.MaxPool2d(factor, ceil_mode=True))
    else:
        factor, rest = divmod(in_stride, stride)
        if rest or factor & (factor - 1):
            raise InputError(f"strides: {stride} cannot be made from a map of stride {in_stride}, only powers of two")
        while factor > 1:
            half = max(channels // 2, 1)
            layers.append(nn.ConvTranspose2d(channels, half, 2, 2))
            if factor > 2:
                layers += [LayerNorm2d(half), nn.GELU()]
            channels, factor = half, factor // 2
    layers += [
        nn.Conv2d(channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    ]
    return nn.Sequential(*layers)
