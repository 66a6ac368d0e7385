"""Short depthwise convolutions on tokens, with SiLU: what gives a scan its sense of position and neighbourhood."""

from torch import Tensor, nn
from torch.nn import functional as F

from .operators import conv_silu


class GridConv(nn.Conv2d):
    """SiLU of a depthwise 3x3 convolution, no bias, on row-major tokens of a grid."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__(dim, dim, 3, padding=1, groups=dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        return conv_silu(x, self.weight, grid)


class CausalConv(nn.Conv1d):
    """SiLU of a depthwise convolution over the last four tokens of a sequence, no bias."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__(dim, dim, 4, groups=dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] -> [B, N, C]; token t sees t - 3 to t. `grid` is there for `GridConv`'s signature."""
        x = F.pad(x.transpose(1, 2), (3, 0))
        x = F.conv1d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        return F.silu(x.transpose(1, 2))


class NoConv(nn.Module):
    """The tokens as they are."""

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        return x
