"""The block of MetaLA-ViT: token mixer and channel mixer, each with a norm before it and a residual around it."""

from typing import Final

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from .mixers.registry import build_mixer
from .residual import mixer_branch, mlp_branch
from .swiglu import SwiGLU


class MetaLABlock(nn.Module):
    """Pre-norm block: x += mixer(LN(x)); x += SwiGLU(LN(x)).

    Attributes:
        grid: (rows, cols) of tokens that are passed without a grid; the model sets it to the grid of its `img_size`.

    Args:
        dim: channels C of a token.
        num_heads: as for `MetaLA`.
        mlp_ratio: hidden channels of the SwiGLU over `dim`.
        scan: as for `MetaLA`.
        causal: as for `MetaLA`.
        local_conv: as for `MetaLA`.
        self_aug: as for `MetaLA`.
        decay_bias: as for `MetaLA`.
        mlp_conv: the `conv` of `SwiGLU`.
        proj_drop: dropout after the projections of both mixers.
        drop_path: rate of stochastic depth of both residual branches.
        mixer: name of the token mixer, out of `mixers.MIXERS`; it takes those of the arguments above that it has.

    Raises:
        ValueError: what the mixer refuses.
    """

    grid: tuple[int, int] | None
    mlp_conv: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 3.0,
        scan: tuple[str, ...] = ("row", "row_reverse"),
        causal: bool = False,
        local_conv: bool = True,
        self_aug: bool = True,
        decay_bias: bool = True,
        mlp_conv: bool = False,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        mixer: str = "metala",
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.grid = None
        self.mlp_conv = mlp_conv
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mixer = build_mixer(
            mixer,
            dim,
            num_heads,
            scan=scan,
            causal=causal,
            local_conv=local_conv,
            self_aug=self_aug,
            decay_bias=decay_bias,
            proj_drop=proj_drop,
            **dd,
        )
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = SwiGLU(dim, int(dim * mlp_ratio), proj_drop, mlp_conv, causal, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """[B, N, C] -> [B, N, C]; without a `grid`, x must have all the tokens of `self.grid`."""
        if grid is None:
            grid = self._nominal_grid(x.shape[1])
        if not torch.jit.is_scripting():
            x = mixer_branch(x, self.norm1, self.mixer, self.drop_path1, grid)
            return mlp_branch(x, self.norm2, self.mlp, self.drop_path2, grid if self.mlp_conv else None)
        x = x + self.drop_path1(self.mixer(self.norm1(x), grid))
        if self.mlp_conv:
            return x + self.drop_path2(self.mlp(self.norm2(x), grid))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _nominal_grid(self, tokens: int) -> tuple[int, int]:
        grid = self.grid
        if grid is None:
            raise ValueError("grid: got None, expected (rows, cols) of the tokens: write block(x, grid)")
        if grid[0] * grid[1] != tokens:
            raise ValueError(
                f"grid: got None for {tokens} tokens, expected the {grid[0]} * {grid[1]} patches of an image of"
                " img_size: a scan needs the whole grid, so put a mask token in the place of each token that is dropped"
                " (idx_mask instead of idx_keep), and for images of another size write block(x, grid), or call"
                " set_input_size"
            )
        return grid
