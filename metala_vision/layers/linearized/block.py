"""A block of a pretrained ViT that is told the grid of its patches."""

from typing import Final

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .attention import LinearizedAttention


class LinearizedBlock(nn.Module):
    """timm's `Block` with its modules and their names; its attention is a linear one, or stays as it is.

    Args:
        block: the block, whose modules are taken over.
        attn: what takes the place of its attention; None keeps it.

    Raises:
        ValueError: another kind of block.
    """

    is_linear: Final[bool]

    def __init__(self, block: Block, attn: LinearizedAttention | None = None):
        super().__init__()
        if type(block) is not Block:
            raise ValueError(
                f"block: got a {type(block).__name__}, expected timm's Block, with a norm before each branch"
            )
        self.is_linear = attn is not None
        self.norm1 = block.norm1
        self.attn = block.attn if attn is None else attn
        self.ls1, self.drop_path1 = block.ls1, block.drop_path1
        self.norm2, self.mlp = block.norm2, block.mlp
        self.ls2, self.drop_path2 = block.ls2, block.drop_path2

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Tokens [B, P + N, C] -> [B, P + N, C]; without a `grid`, that of `attn.grid`."""
        if self.is_linear:  # noqa: SIM108  (TorchScript leaves out what a statement excludes, but not an expression)
            mixed = self.attn(self.norm1(x), grid)
        else:
            mixed = self.attn(self.norm1(x))
        x = x + self.drop_path1(self.ls1(mixed))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
