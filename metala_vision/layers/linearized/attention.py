"""Attention of a pretrained ViT whose patches attend to each other in a linear form."""

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from .forms import FORMS


class LinearizedAttention(nn.Module):
    """timm's `Attention` with all its weights, where what goes between patches is one of `FORMS`.

    Class token and registers attend to every token exactly, and every patch to them: that is linear already. A
    depthwise 3x3 convolution of the values is added to the patches, at first zero: heads that look at neighbours alone
    are beyond a few states.

    Attributes:
        grid: rows and columns of the patches where forward gets none; the model sets it to those of its `img_size`.

    Args:
        attn: the attention, whose modules are taken over.
        num_prefix_tokens: tokens before the patches.
        form: a name out of `FORMS`.
        states: states of each head.
        scan: orders of the scan, for a form that has one.

    Raises:
        ValueError: an unknown form, no states, another kind of attention, or one with dropout of its weights.
    """

    grid: tuple[int, int]

    def __init__(
        self,
        attn: Attention,
        num_prefix_tokens: int,
        form: str = "metala",
        states: int = 64,
        scan: tuple[str, ...] = ("row", "row_reverse"),
    ):
        super().__init__()
        if type(attn) is not Attention:
            raise ValueError(f"attn: got a {type(attn).__name__}, expected timm's Attention")
        if form not in FORMS:
            raise ValueError(f"mixer: got {form!r}, expected one of {tuple(FORMS)}")
        if states < 1:
            raise ValueError(f"states: got {states}, expected 1 or more")
        if attn.attn_drop.p > 0:
            raise ValueError(
                f"attn_drop_rate: got {attn.attn_drop.p}, expected 0: there is no map of weights to drop from"
            )
        weight = attn.qkv.weight
        dd = {"device": weight.device, "dtype": weight.dtype}
        self.num_heads, self.head_dim, self.scale = attn.num_heads, attn.head_dim, attn.scale
        self.num_prefix_tokens = num_prefix_tokens
        self.grid = (0, 0)
        self.qkv, self.q_norm, self.k_norm = attn.qkv, attn.q_norm, attn.k_norm
        self.norm, self.gate, self.proj, self.proj_drop = attn.norm, attn.gate, attn.proj, attn.proj_drop
        options = {"scan": scan} if form == "metala" else {}
        self.form = FORMS[form](self.num_heads, self.head_dim, states, **options, **dd)
        self.form.reset_parameters()
        dim = self.num_heads * self.head_dim
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False, **dd)
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialises what is not in a form; called after the modules within it, as timm does."""
        nn.init.zeros_(self.local.weight)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, P + N, C] -> queries, keys and values [B, H, P + N, D]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Tokens [B, P + N, C], whose patches lie on a (rows, cols) grid -> [B, P + N, C]."""
        if grid is None:
            grid = self.grid
        q, k, v = self.project(x)
        prefix = self.num_prefix_tokens
        patches = self.form(
            q[:, :, prefix:], k[:, :, prefix:], v[:, :, prefix:], k[:, :, :prefix], v[:, :, :prefix], grid
        )
        o = patches.transpose(1, 2).flatten(2) + self.neighbours(v[:, :, prefix:], grid)
        if prefix > 0:
            before = F.scaled_dot_product_attention(q[:, :, :prefix], k, v)
            o = torch.cat([before.transpose(1, 2).flatten(2), o], 1)
        o = self.norm(o)
        if self.gate is not None:
            o = o * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(o))

    def neighbours(self, v: Tensor, grid: tuple[int, int]) -> Tensor:
        """Values [B, H, N, D] -> what the convolution adds [B, N, H D]."""
        maps = v.transpose(2, 3).flatten(1, 2).unflatten(2, (grid[0], grid[1]))
        return self.local(maps).flatten(2).transpose(1, 2)
