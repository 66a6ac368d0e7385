"""The channel mixer of a MetaLA block."""

import torch
from torch import Tensor, nn

from .local_conv import CausalConv, GridConv
from .operators import conv_swiglu, is_traced_for_onnx, swiglu
from .watched import is_plain, is_plain_product


class SwiGLU(nn.Module):
    """(SiLU(x W1) * x W2) W3 without biases (MetaLA, arXiv 2411.10741, eq. A43); W1 and W2 are one projection.

    Args:
        dim: channels C of a token.
        hidden_dim: channels of the product.
        drop: dropout of the result.
        conv: SiLU(DWConv3x3(x W1)) in the place of SiLU(x W1), on the grid of the tokens: a convolutional GLU
            (TransNeXt, arXiv 2311.17132), with our SiLU.
        causal: that convolution sees the last four tokens instead of its neighbours on the grid.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        drop: float = 0.0,
        conv: bool = False,
        causal: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.fc1 = nn.Linear(dim, 2 * hidden_dim, bias=False, **dd)
        self.conv = (CausalConv(hidden_dim, **dd) if causal else GridConv(hidden_dim, **dd)) if conv else None
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=False, **dd)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """[..., C] -> [..., C]; with a convolution x is [B, N, C] and `grid` its rows and columns."""
        if self.conv is not None:
            if grid is None:
                raise ValueError("grid: got None, expected (rows, cols) of the tokens: write mlp(x, grid)")
            hidden = self.fc1(x)
            fused = False
            if not torch.jit.is_scripting():
                fused = is_plain(self.conv, GridConv)
            if fused:
                return self.drop(self.fc2(conv_swiglu(hidden, self.conv.weight, grid)))
            gate, value = hidden.chunk(2, dim=-1)
            return self.drop(self.fc2(self.conv(gate, grid) * value))
        plain = True
        if not torch.jit.is_scripting():
            plain = is_plain_product(self.fc1) and is_plain_product(self.fc2) and not is_traced_for_onnx()
        if plain:
            return self.drop(torch.ops.metala.swiglu_mlp(x, self.fc1.weight, self.fc2.weight))
        return self.drop(self.fc2(swiglu(self.fc1(x))))
