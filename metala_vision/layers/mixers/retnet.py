"""RetNet: linear attention with a fixed decay for each head and rotated queries and keys (arXiv 2307.08621)."""

import torch
from torch import Tensor

from .base import ScannedMixer
from .registry import register_mixer
from .rotary import rotated


@register_mixer("retnet")
class RetNet(ScannedMixer):
    """q = rotated(x Wq), k = rotated(x Wk), v = x Wv, decay = 1 - 2^-(5 + h) of head h, K = dim / 2 / H.

    On a grid the rotation is by row and column, and on a sequence by place. The paper's heads have K = dim / H and
    V = 2 dim / H; here they have the state of a MetaLA head, so that the two compare. The arguments are those of
    `ScannedMixer`, but for the bias of a decay that does not depend on the data.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        scan: tuple[str, ...] = ("row", "row_reverse"),
        causal: bool = False,
        local_conv: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        half = dim // 2
        settings = scan, causal, local_conv, False, proj_drop, device, dtype
        super().__init__(dim, num_heads, half // max(num_heads, 1), (half, half), *settings)

    def choose(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """See `ScannedMixer.choose`."""
        q, k, v, z = self.project(x, grid)
        q = rotated(self.per_head(q), grid, self.key_dim, self.causal)
        k = rotated(self.per_head(k), grid, self.key_dim, self.causal)
        heads = torch.arange(self.num_heads, device=q.device, dtype=torch.promote_types(q.dtype, torch.float32))
        log_decay = torch.log1p(-torch.exp2(-5 - heads)) * self.decay_scale(grid)
        return q, log_decay.view(1, 1, -1, 1).expand(q.shape), k, self.per_head(v), z
