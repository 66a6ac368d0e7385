"""GLA: gated linear attention with keys and a decay of low rank (arXiv 2312.06635)."""

from torch import Tensor, nn

from metala_vision.kernels.unfused import gate_log_decay

from .base import ScannedMixer
from .registry import register_mixer

RANK = 16  # of the decay's projection, as in the paper


@register_mixer("gla")
class GLA(ScannedMixer):
    """q = x Wq, k = x Wk, v = x Wv, log-decay = logsigmoid(x Wa Wb + b) / 16, K = dim / 2 / H.

    It is MetaLA with a key of its own and a decay of rank 16. The paper's norm, an RMSNorm with weights, is our
    LayerNorm here, see `ScannedMixer`. The arguments are those of `ScannedMixer`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        scan: tuple[str, ...] = ("row", "row_reverse"),
        causal: bool = False,
        local_conv: bool = True,
        decay_bias: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        half = dim // 2
        settings = scan, causal, local_conv, decay_bias, proj_drop, device, dtype
        super().__init__(dim, num_heads, half // max(num_heads, 1), (half, half, RANK), *settings)
        self.decay_proj = nn.Linear(RANK, half, bias=False, device=device, dtype=dtype)

    def choose(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """See `ScannedMixer.choose`."""
        q, k, low, v, z = self.project(x, grid)
        logits = self.decay_proj(low)
        if self.decay_bias is not None:
            logits = logits + self.decay_bias
        log_decay = gate_log_decay(logits, self.decay_scale(grid))
        return self.per_head(q), self.per_head(log_decay), self.per_head(k), self.per_head(v), z
