"""ZeroS: linear attention by weights that sum to zero (arXiv 2602.05230)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import TokenMixer
from .registry import register_mixer
from .rotary import rotated
from .sums import number_of_tokens, running_product

MOST = 15.0  # of a logit of a causal mixer


@register_mixer("zeros")
class ZeroS(TokenMixer):
    """Softmax weights of logits s_i less their constant part, its first and higher orders gated apart, times a cosine.

    s_i = -u_i . m / sqrt(K), where m is the mean of the u, with a learned vector mu that counts for e^tau tokens;
    d_i = s_i - mean(s); r_ti = first_t d_i / N + higher_t (softmax(s)_i - 1/N - d_i / N), which sums to zero over i;
    o_t = sum_i r_ti cos(q_t, k_i) v_i, with q and k rotated by their places; y = LayerNorm_per_head(o) Wo.

    first and higher are sigmoids of x W, a scalar of each head. Over a grid all sums are over its N tokens, and that
    takes one product of k with v in two weightings. In a causal mixer they are over the tokens so far, which the mean
    at i, the softmax and the orders then follow. K = V = dim / H. The paper's optional constant part of the first
    layer, which its experiments do not use, is left out. In a causal mixer s_i is kept within 15 either way, since one
    far above all before it would leave nothing of them in float32, although they do not depend on it. The arguments are
    those of `TokenMixer`, and `rotary`: False leaves the rotation out.
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
        self.most: float = MOST  # TorchScript takes it from here alone
        # Of one dimension, since they are no products: optimisers exempt them from weight decay by that.
        self.prior = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))  # mu
        self.log_prior_tokens = nn.Parameter(torch.zeros(num_heads, device=device, dtype=dtype))  # tau

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
        return self.merge(F.layer_norm(o, [self.value_dim], eps=self.norm_eps).flatten(2).to(v.dtype))

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
        q, k = _unit(q), _unit(k)
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
        prior_tokens = self.log_prior_tokens.exp().unsqueeze(-1)
        prior = self.prior.view(self.num_heads, -1)
        if self.causal:
            tokens = torch.arange(1, u.shape[1] + 1, device=u.device, dtype=u.dtype).view(1, -1, 1, 1)
            mean = (prior_tokens * prior + u.cumsum(1)) / (prior_tokens + tokens)
        else:
            mean = (prior_tokens * prior + u.sum(1, keepdim=True)) / (prior_tokens + number_of_tokens(grid))
        logits = -(u * mean).sum(-1) * u.shape[-1] ** -0.5
        return logits.clamp(-self.most, self.most) if self.causal else logits


def _around_the_middle(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """w = e^s - e^c, e^s and d = s - c of logits s [B, N, H], c being their mean.

    softmax(s) - 1/N is (w - mean w) / sum e^s.

    Both exponentials are divided by the largest of the sequence. Logits of nearly equal tokens differ by less than
    float32 can tell from one in their exponentials, but not in w. In e^s none counts as less than e^-40 of the largest,
    so that no sum of the first few is zero.
    """
    top, middle = logits.amax(1, keepdim=True), logits.mean(1, keepdim=True)
    above, level = logits - middle, (middle - top).clamp(min=-40.0).exp()
    low = torch.maximum(logits, top - 40.0)
    exponential = (low - top).exp()
    close = (low - middle).clamp(max=1.0)
    near = level * torch.tanh(0.5 * close) * (close.exp() + 1)  # level * expm1(close), which ONNX does not have
    return torch.where(above < 1.0, near, exponential - level), exponential, above


def _unit(x: Tensor) -> Tensor:
    """x over its length, which is taken in float32: that of a zero token, 1e-12 at least, is none in float16."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).to(x.dtype)


def _mix_all(q: Tensor, k: Tensor, v: Tensor, logits: Tensor, first: Tensor, higher: Tensor, tokens: float) -> Tensor:
    """o over all N `tokens` of a grid, float32 or better: two weightings of k share one product with v, one with q.

    The weights are of the order of 1 / N, which float16 would lose: N of them are in the keys, and of the 1 / N that is
    left one half is in the values and one in the output.
    """
    root = tokens**-0.5
    weight, exponential, above = _around_the_middle(logits)
    of_first = above - above.mean(1, keepdim=True)
    of_higher = (weight - weight.mean(1, keepdim=True)) / exponential.mean(1, keepdim=True) - of_first
    weights = torch.stack([of_first, of_higher], -1).unsqueeze(-1)  # [B, N, H, 2, 1]
    weighted = (k.unsqueeze(3) * weights).to(k.dtype).flatten(3)  # [B, N, H, 2 K]
    state = weighted.permute(0, 2, 3, 1) @ (v * root).transpose(1, 2)  # [B, H, 2 K, V]
    o = torch.cat([first.to(q.dtype) * q, higher.to(q.dtype) * q], -1).transpose(1, 2) @ state
    return o.transpose(1, 2).to(logits.dtype) * root


def _mix_so_far(q: Tensor, k: Tensor, v: Tensor, logits: Tensor, first: Tensor, higher: Tensor) -> Tensor:
    """o over the tokens so far, float32 or better: running sums of k^T v in three weightings, and factors to read them.

    With w_i and d_i of `_around_the_middle`, and sums E of e^s, W of w and D of d over the t tokens so far, the weight
    of token i is higher w_i / E + (first - higher) d_i / t + ((higher - first) D / t - higher W / E) / t.
    """
    weight, exponential, above = _around_the_middle(logits)
    tokens = torch.arange(1, logits.shape[1] + 1, device=logits.device, dtype=logits.dtype).view(1, -1, 1)
    sum_of_exponentials, mean_weight = exponential.cumsum(1), weight.cumsum(1) / tokens
    mean = above.cumsum(1) / tokens
    first, higher = first.squeeze(-1).to(logits.dtype), higher.squeeze(-1).to(logits.dtype)
    rest = (higher - first) * mean / tokens - higher * mean_weight / sum_of_exponentials
    factors = higher / sum_of_exponentials, (first - higher) / tokens, rest
    # The weightings stand beside each other as heads: the kernels take no more channels in one.
    keys = torch.cat([weight.unsqueeze(-1) * k, above.unsqueeze(-1) * k, k.to(logits.dtype)], 2)
    queries = torch.cat([factor.unsqueeze(-1) * q for factor in factors], 2)
    return running_product(queries, keys, torch.cat([v, v, v], 2).to(logits.dtype)).unflatten(2, (3, -1)).sum(2)
