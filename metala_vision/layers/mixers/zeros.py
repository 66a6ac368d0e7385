"""ZeroS: linear attention by weights that sum to zero (arXiv 2602.05230)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import TokenMixer
from .registry import register_mixer
from .rotary import rotated
from .sums import number_of_tokens, running_product


@register_mixer("zeros")
class ZeroS(TokenMixer):
    """Softmax weights of logits s_i less their constant part, its first and higher orders gated apart, times a cosine.

    s_i = -u_i . m / sqrt(K), where m is the mean of the u, with a learned vector mu that counts for e^tau tokens;
    d_i = s_i - mean(s); r_ti = first_t d_i / N + higher_t (softmax(s)_i - 1/N - d_i / N), which sums to zero over i;
    o_t = sum_i r_ti cos(q_t, k_i) v_i, with q and k rotated by their places; y = LayerNorm_per_head(o) Wo.

    first and higher are sigmoids of x W, a scalar of each head. Over a grid all sums are over its N tokens, and that
    takes one product of k with v in two weightings. In a causal mixer they are over the tokens so far, which the mean
    at i, the softmax and the orders then follow. K = V = dim / H. The paper's optional constant part of the first
    layer, which its experiments do not use, is left out. The arguments are those of `TokenMixer`, and `rotary`: False
    leaves the rotation out.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        causal: bool = False,
        local_conv: bool = True,
        proj_drop: float = 0.0,
        rotary: bool = True,
        device=None,
        dtype=None,
    ):
        widths = (dim, dim, dim, dim, num_heads, num_heads)  # q, k, u, v, first, higher
        super().__init__(dim, num_heads, widths, causal, local_conv, proj_drop, device, dtype)
        self.rotary = rotary
        self.prior = nn.Parameter(torch.zeros(num_heads, self.value_dim, device=device, dtype=dtype))  # mu
        self.log_prior_tokens = nn.Parameter(torch.zeros(num_heads, 1, device=device, dtype=dtype))  # tau

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialises what is not in a module of its own."""
        nn.init.zeros_(self.prior)
        nn.init.zeros_(self.log_prior_tokens)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] row-major tokens of a (rows, cols) grid -> [B, N, C]."""
        return self.mix(x, grid)

    def mix(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """`forward`, under a name that a subclass with another one can call from TorchScript."""
        q, k, v, logits, first, higher = self._parts(x, grid)
        o = self._attend(q, k, v, logits, first, higher, grid)
        return self.merge(F.layer_norm(o, [self.value_dim], eps=self.norm_eps).flatten(2))

    @torch.jit.ignore
    def map_of_values(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `TokenMixer.map_of_values`."""
        q, k, v, logits, first, higher = self._parts(x, grid)
        return v, lambda values: self._attend(q, k, values, logits, first, higher, grid)

    def _parts(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Tokens -> q, k and v [B, N, H, K], logits [B, N, H], first and higher [B, N, H, 1]."""
        q, k, u, v, first, higher = self.project(x, grid)
        q, k = self.per_head(q), self.per_head(k)
        if self.rotary:
            q = rotated(q, grid, self.value_dim, self.causal)
            k = rotated(k, grid, self.value_dim, self.causal)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        first, higher = torch.sigmoid(first).unsqueeze(-1), torch.sigmoid(higher).unsqueeze(-1)
        return q, k, self.per_head(v), self._logits(self.per_head(u), grid), first, higher

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        logits: Tensor,
        first: Tensor,
        higher: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        if self.causal:
            return _mix_so_far(q, k, v, logits, first, higher)
        return _mix_all(q, k, v, logits, first, higher, number_of_tokens(grid))

    def _logits(self, u: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, H, K] -> s [B, N, H], in float32 or better."""
        u = u.to(torch.promote_types(u.dtype, torch.float32))
        prior_tokens = self.log_prior_tokens.exp()
        if self.causal:
            tokens = torch.arange(1, u.shape[1] + 1, device=u.device, dtype=u.dtype).view(1, -1, 1, 1)
            mean = (prior_tokens * self.prior + u.cumsum(1)) / (prior_tokens + tokens)
        else:
            mean = (prior_tokens * self.prior + u.sum(1, keepdim=True)) / (prior_tokens + number_of_tokens(grid))
        return -(u * mean).sum(-1) * u.shape[-1] ** -0.5


def _mix_all(q: Tensor, k: Tensor, v: Tensor, logits: Tensor, first: Tensor, higher: Tensor, tokens: float) -> Tensor:
    """o over all N `tokens` of a grid: two weightings of k share one product with v, and one with q."""
    of_first = (logits - logits.mean(1, keepdim=True)) / tokens
    of_higher = logits.softmax(1) - 1 / tokens - of_first
    weights = torch.stack([of_first, of_higher], -1).unsqueeze(-1)  # [B, N, H, 2, 1]
    weighted = (k.unsqueeze(3) * weights.to(k.dtype)).flatten(3)  # [B, N, H, 2 K]
    state = weighted.permute(0, 2, 3, 1) @ v.transpose(1, 2)  # [B, H, 2 K, V]
    o = torch.cat([first.to(q.dtype) * q, higher.to(q.dtype) * q], -1).transpose(1, 2) @ state
    return o.transpose(1, 2)


def _mix_so_far(q: Tensor, k: Tensor, v: Tensor, logits: Tensor, first: Tensor, higher: Tensor) -> Tensor:
    """o over the tokens so far: running sums of k^T v in three weightings, with factors of the token that reads them.

    With E = sum e^s and P = sum s of the t tokens so far, the weight of token i is
    higher e^s_i / E + (first - higher) s_i / t + (higher (P / t - 1) - first P / t) / t.
    """
    tokens = torch.arange(1, logits.shape[1] + 1, device=logits.device, dtype=logits.dtype).view(1, -1, 1)
    exponential = (logits - logits.amax(1, keepdim=True)).exp()  # the maximum of all tokens cancels in each quotient
    sum_of_exponentials, mean = exponential.cumsum(1).unsqueeze(-1), (logits.cumsum(1) / tokens).unsqueeze(-1)
    tokens = tokens.unsqueeze(-1)
    factors = higher / sum_of_exponentials, (first - higher) / tokens, (higher * (mean - 1) - first * mean) / tokens
    # The weightings stand beside each other as heads: the kernels take no more channels in one.
    keys = torch.cat([exponential.unsqueeze(-1) * k, logits.unsqueeze(-1) * k, k.to(logits.dtype)], 2)
    queries = torch.cat([factor * q for factor in factors], 2)
    return running_product(queries, keys, torch.cat([v, v, v], 2)).unflatten(2, (3, -1)).sum(2)
