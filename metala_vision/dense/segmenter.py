"""segmentation_models_pytorch's decoders: on a pyramid over any timm model, and DPT on the blocks of a plain one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metala_vision.errors import InputError

from .pyramid import STRIDES, SimpleFeaturePyramid
from .trunk import create_trunk

SEGMENTERS = ("unet", "fpn", "upernet", "segformer", "dpt")


def segmenter(
    kind: str,
    backbone: str | nn.Module,
    num_classes: int,
    out_channels: int = 256,
    backbone_arguments: dict | None = None,
    **options: Any,
) -> "PyramidSegmenter | PlainSegmenter":
    """A segmenter: images [B, in_chans, height, width] of any size in, logits [B, num_classes, height, width] out.

    Args:
        kind: "unet", "fpn", "upernet" or "segformer" on a pyramid, or "dpt" on four blocks of a plain backbone.
        backbone: name of a timm model, or a model: see `FeatureMap`.
        num_classes: channels of the logits.
        out_channels: channels of the pyramid, or of the fusion of "dpt".
        backbone_arguments: further arguments of `timm.create_model`, if `backbone` is a name.
        **options: options of the decoder, such as `decoder_channels`.

    Raises:
        InputError: an unknown kind or model, an argument that does not fit, or segmentation_models_pytorch missing.
    """
    if kind not in SEGMENTERS:
        raise InputError(f"kind: got {kind!r}, expected one of {SEGMENTERS}")
    if not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(f"num_classes: got {num_classes!r}, expected at least 1 class")
    smp = _smp()
    try:
        if kind == "dpt":
            trunk = create_trunk(backbone, **(backbone_arguments or {}))
            return _dpt(smp, trunk, num_classes, out_channels, options)
        pyramid = SimpleFeaturePyramid(backbone, out_channels, STRIDES, **(backbone_arguments or {}))
        return PyramidSegmenter(pyramid, *_decoder(smp, kind, pyramid.out_channels, num_classes, options))
    except TypeError as error:
        raise InputError(f"segmenter: {kind}: {error}") from error


class PyramidSegmenter(nn.Module):
    """A pyramid, a decoder and a head of segmentation_models_pytorch.

    Args:
        pyramid: a pyramid of strides 4, 8, 16 and 32.
        decoder: takes a list of maps of strides 1, 2, 4, ... 32; the map of stride 2 has no channels.
        head: makes logits of the padded image from the decoder's output.
    """

    def __init__(self, pyramid: SimpleFeaturePyramid, decoder: nn.Module, head: nn.Module):
        super().__init__()
        self.pyramid = pyramid
        self.decoder = decoder
        self.head = head

    @property
    def trunk(self) -> nn.Module:
        """The timm model."""
        return self.pyramid.trunk

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, height, width] -> logits [B, num_classes, height, width]."""
        height, width = x.shape[-2:]
        x = padded(x, 32)
        half = x.new_empty(x.shape[0], 0, x.shape[-2] // 2, x.shape[-1] // 2)
        logits = self.head(self.decoder([x, half, *self.pyramid(x).values()]))
        return logits[:, :, :height, :width]


class PlainSegmenter(nn.Module):
    """Blocks of a plain backbone, and DPT's decoder and head (arXiv 2103.13413) of segmentation_models_pytorch.

    Args:
        trunk: a timm model with `forward_intermediates`.
        indices: indices of four blocks.
        decoder: takes the maps of these blocks.
        head: makes logits of the padded image from the decoder's output.
    """

    trunk: Any  # timm's models share methods, but no class

    def __init__(self, trunk: nn.Module, indices: Sequence[int], decoder: nn.Module, head: nn.Module):
        super().__init__()
        self.trunk = trunk
        # Norm, head and later blocks would get no gradients.
        self.trunk.prune_intermediate_layers(list(indices), prune_norm=True, prune_head=True)
        self.indices = list(indices)
        self.decoder = decoder
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, height, width] -> logits [B, num_classes, height, width]."""
        height, width = x.shape[-2:]
        maps = self.trunk.forward_intermediates(padded(x, 32), indices=self.indices, intermediates_only=True)
        logits = self.head(self.decoder(maps, [None] * len(maps)))
        return logits[:, :, :height, :width]


def padded(x: Tensor, multiple: int) -> Tensor:
    """[B, C, height, width] with zeros below and at the right, so that `multiple` divides both sides."""
    # Without a condition, a remainder, or a negative quotient, which graphs of ONNX round up: so it can be exported.
    bottom, right = ((side + multiple - 1) // multiple * multiple - side for side in x.shape[-2:])
    return F.pad(x, (0, right, 0, bottom))


@torch.no_grad()
def sliding_window(run: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int, batch: int = 4) -> Tensor:
    """Mean logits of overlapping windows.

    Args:
        run: [B, C, window, window] -> logits [B, classes, window, window].
        image: [1, C, height, width]; an image smaller than a window is padded to one.
        window: side of a window.
        stride: pixels from one window to the next, at most `window`; the last window of each row and column ends with
            the image.
        batch: number of windows that are run together.

    Returns:
        [1, classes, height, width].

    Raises:
        ValueError: the stride would leave pixels out.
    """
    if not 0 < stride <= window:
        raise ValueError(f"stride: got {stride}, expected 1 to the window's {window}")
    height, width = image.shape[-2:]
    image = F.pad(image, (0, max(0, window - width), 0, max(0, window - height)))
    tops, lefts = (_starts(side, window, stride) for side in image.shape[-2:])
    corners = [(top, left) for top in tops for left in lefts]
    total = image.new_zeros(0)
    counts = image.new_zeros(1, 1, *image.shape[-2:])
    for begin in range(0, len(corners), batch):
        some = corners[begin : begin + batch]
        logits = run(torch.cat([image[:, :, top : top + window, left : left + window] for top, left in some]))
        if total.numel() == 0:  # the first, which tells the number of classes
            total = logits.new_zeros(1, logits.shape[1], *image.shape[-2:])
        for (top, left), part in zip(some, logits):
            total[0, :, top : top + window, left : left + window] += part
            counts[:, :, top : top + window, left : left + window] += 1
    return (total / counts)[:, :, :height, :width]


def _starts(side: int, window: int, stride: int) -> Sequence[int]:
    """Where the windows that cover a side begin."""
    return [*range(0, side - window, stride), side - window]


def _smp():
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise InputError(
            "segmenter: its decoders are those of segmentation_models_pytorch, which is not installed; "
            "pip install segmentation-models-pytorch, or metala_vision with the extra 'segmentation'"
        ) from error
    return segmentation_models_pytorch


def _decoder(smp, kind: str, channels: int, num_classes: int, options: dict) -> tuple[nn.Module, nn.Module]:
    """A decoder and its head."""
    decoders = smp.decoders
    maps = dict(encoder_channels=[3, 0, *[channels] * len(STRIDES)])
    head = smp.base.SegmentationHead
    if kind == "unet":
        options = {"decoder_channels": (256, 128, 64, 32, 16), **options}
        decoder = decoders.unet.decoder.UnetDecoder(**maps, n_blocks=5, **options)
        return decoder, head(options["decoder_channels"][-1], num_classes, kernel_size=3)
    if kind == "fpn":
        decoder = decoders.fpn.decoder.FPNDecoder(**maps, **options)
        return decoder, head(decoder.out_channels, num_classes, kernel_size=1, upsampling=4)
    if kind == "upernet":
        options = {"decoder_channels": 256, **options}
        decoder = decoders.upernet.decoder.UPerNetDecoder(**maps, **options)
        return decoder, head(options["decoder_channels"], num_classes, kernel_size=1, upsampling=4)
    options = {"segmentation_channels": 256, **options}
    decoder = decoders.segformer.decoder.SegformerDecoder(**maps, **options)
    return decoder, head(options["segmentation_channels"], num_classes, kernel_size=1, upsampling=4)


def _dpt(smp, trunk: nn.Module, num_classes: int, channels: int, options: dict) -> PlainSegmenter:
    """DPT on the blocks at one, two, three and four quarters of the depth."""
    info = getattr(trunk, "feature_info", None)
    if not isinstance(info, list) or len(info) < 4 or not hasattr(trunk, "prune_intermediate_layers"):
        raise InputError(f"backbone: {type(trunk).__name__} is no plain timm model of at least 4 blocks, as dpt needs")
    indices = [len(info) * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
    dpt = smp.decoders.dpt.decoder
    decoder = dpt.DPTDecoder(
        encoder_out_channels=[info[i]["num_chs"] for i in indices],
        encoder_output_strides=[info[i]["reduction"] for i in indices],
        encoder_has_prefix_tokens=False,
        **{"readout": "ignore", "fusion_channels": channels, **options},
    )
    return PlainSegmenter(trunk, indices, decoder, dpt.DPTSegmentationHead(channels, num_classes))
