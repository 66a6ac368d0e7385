"""Short depthwise convolutions on tokens: what gives a scan its sense of position and neighbourhood."""

from torch import Tensor, nn
from torch.nn import functional as F


class GridConv(nn.Conv2d):
    """Depthwise 3x3 convolution, no bias, on row-major tokens of a grid."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__(dim, dim, 3, padding=1, groups=dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] -> [B, N, C]. Tokens are an NHWC image already, so no element moves on the way in or out."""
        batch, tokens, dim = x.shape
        x = x.reshape(batch, grid[0], grid[1], dim).permute(0, 3, 1, 2)
        x = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        return x.permute(0, 2, 3, 1).reshape(batch, tokens, dim)


class CausalConv(nn.Conv1d):
    """Depthwise convolution over the last four tokens of a sequence, no bias."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__(dim, dim, 4, groups=dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] -> [B, N, C]; token t sees t - 3 to t. `grid` is there for `GridConv`'s signature."""
        x = F.pad(x.transpose(1, 2), (3, 0))
        return F.conv1d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups).transpose(1, 2)
