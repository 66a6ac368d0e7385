"""Images to tokens on a grid."""

import timm.layers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import metala_vision.kernels  # noqa: F401  (registers the operator)

from .watched import is_plain

BAND = 512  # patches that are taken out of the image at a time: they and their copy stay in the cache


class PatchEmbed(timm.layers.PatchEmbed):
    """timm's patch embedding for any height and width, with channels last also in memory where that is free.

    Inference on a CPU goes through the image in bands: for 8192 x 8192 pixels the convolution would make two copies as
    large as the image and take three times as long (measured with 2 threads, PyTorch 2.15).
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        device=None,
        dtype=None,
    ):
        super().__init__(
            img_size,
            patch_size,
            in_chans,
            embed_dim,
            output_fmt="NHWC",
            strict_img_size=False,
            dynamic_img_pad=True,
            device=device,
            dtype=dtype,
        )

    def _init_img_size(
        self, img_size: int | tuple[int, int] | None
    ) -> tuple[tuple[int, int] | None, tuple[int, int] | None, int | None]:
        """The nominal size, its grid and patches, padded to whole ones as in forward(); timm drops a rest."""
        size, *_ = super()._init_img_size(img_size)
        if size is None:
            return None, None, None
        rows, cols = -(-size[0] // self.patch_size[0]), -(-size[1] // self.patch_size[1])
        return size, (rows, cols), rows * cols

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, height, width] -> [B, rows, cols, C]; sides are padded to the patch with zeros."""
        if not torch.jit.is_scripting() and self._goes_in_bands(x):
            return self._in_bands(x)
        return self.proj(_padded(x, self.patch_size[0], self.patch_size[1])).permute(0, 2, 3, 1)

    @torch.jit.unused
    def _goes_in_bands(self, x: Tensor) -> bool:
        """Whether to take bands: only in eager inference, since a tracer would record an operator for each band."""
        if type(x) is not Tensor or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return False  # first, since a tracer's stand-in for a parameter has no truth value
        trains = torch.is_grad_enabled() and (x.requires_grad or self.proj.weight.requires_grad)
        if trains or x.device.type != "cpu" or not is_plain(self.proj, nn.Conv2d):
            return False
        return x.dim() == 4 and x.shape[1] == self.proj.in_channels  # else the convolution says what is wrong

    @torch.jit.unused
    def _in_bands(self, x: Tensor) -> Tensor:
        height, width = self.patch_size
        cols = -(-x.shape[3] // width)
        rows = max(1, BAND // max(1, cols))
        weight = self.proj.weight.flatten(1)
        tokens = [
            F.linear(torch.ops.metala.patches(band, height, width), weight, self.proj.bias)
            for band in x.split(rows * height, dim=2)
        ]
        return tokens[0] if len(tokens) == 1 else torch.cat(tokens, 1)


def _padded(x: Tensor, height: int, width: int) -> Tensor:
    """`x` with zeros below and to the right, up to whole patches."""
    return F.pad(x, (0, (width - x.shape[3] % width) % width, 0, (height - x.shape[2] % height) % height))
