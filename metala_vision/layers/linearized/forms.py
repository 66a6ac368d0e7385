"""What takes the place of softmax attention between patches: three forms, all linear in their number.

Each is told the queries, keys and values of a trained attention, and stands for its output. Shapes: B images, H heads,
N patches, P tokens before them (class token and registers), D channels of a head, M states of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metala_vision.layers.decay import decay_scale
from metala_vision.layers.operators import attention

EPS = 1e-6  # beside the size of a class, which may be that of none
LARGEST_FADE = 0.99  # a state that fades wholly would have a log-decay of minus infinity
SHARPNESS = 16.0  # of the first shares: at 4 a key belongs to several neighbouring classes, which blurs them


class Form(nn.Module):
    """A form of attention with M states for each head.

    A key has a share in each state: the softmax over the states of logits that are linear in it, by `key_weight`
    [H, D, M] and `key_bias` [H, M]. `start` makes the states classes of the keys of a trained attention.

    Args:
        num_heads: heads H.
        head_dim: channels D of a head.
        states: states M of a head.
    """

    def __init__(self, num_heads: int, head_dim: int, states: int, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads, self.head_dim, self.states = num_heads, head_dim, states
        self.scale = head_dim**-0.5
        self.eps: float = EPS  # TorchScript takes it from here alone
        self.key_weight = nn.Parameter(torch.empty(num_heads, head_dim, states, **dd))
        self.key_bias = nn.Parameter(torch.empty(num_heads, states, **dd))

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Random states, each as likely as the others."""
        nn.init.trunc_normal_(self.key_weight, std=0.02)
        nn.init.zeros_(self.key_bias)

    @torch.no_grad()
    def start(self, centres: Tensor, spread: Tensor) -> None:
        """Sets the states to classes of keys.

        Args:
            centres: [H, M, D].
            spread: mean square distance of keys from the nearest centre [H].
        """
        # softmax(-|k - c|^2 * SHARPNESS / spread) over the classes c, without the part that all of them share
        sharp = (SHARPNESS / spread.clamp_min(EPS))[:, None]
        self.key_weight.copy_((2 * sharp[..., None] * centres).transpose(1, 2))
        self.key_bias.copy_(-sharp * centres.square().sum(2))

    def assign(self, k: Tensor) -> Tensor:
        """Keys [B, H, N, D] -> their shares in the states [B, H, N, M], which sum to one."""
        return (k @ self.key_weight + self.key_bias.unsqueeze(1)).softmax(-1)


class Classes(Form):
    """Attention to the classes that the keys of this image fall into, each by its mean key, mean value and size.

    k_m = sum_j a_jm k_j / n_m, v_m likewise, n_m = sum_j a_jm, and o_i = softmax_m(q_i . k_m / sqrt(D) + log n_m) v_m.
    With a class for every key it is softmax attention; tokens before the patches keep a key of their own.
    """

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Queries, keys and values of the patches [B, H, N, D], those before them [B, H, P, D] -> [B, H, N, D]."""
        share = self.assign(k)
        size = share.sum(2) + self.eps
        gather = (share / size.unsqueeze(2)).transpose(2, 3)
        keys = torch.cat([prefix_k, gather @ k], 2)
        values = torch.cat([prefix_v, gather @ v], 2)
        bias = torch.cat([prefix_k.new_zeros(prefix_k.shape[:3]), size.log()], 2).unsqueeze(2).to(q.dtype)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias.expand(-1, -1, q.shape[2], -1))


class Kernel(Form):
    """Plain linear attention: features of a query and of a key are softmaxes over M states.

    o_i = sum_m f(q_i)_m sum_j a_jm v_j / sum_m f(q_i)_m sum_j a_jm, f(q) = exp(q Wq + bq).
    """

    def __init__(self, num_heads: int, head_dim: int, states: int, device=None, dtype=None):
        super().__init__(num_heads, head_dim, states, device, dtype)
        dd = {"device": device, "dtype": dtype}
        self.query_weight = nn.Parameter(torch.empty(num_heads, head_dim, states, **dd))
        self.query_bias = nn.Parameter(torch.empty(num_heads, states, **dd))

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Random states, each as likely as the others."""
        super().reset_parameters()
        nn.init.trunc_normal_(self.query_weight, std=0.02)
        nn.init.zeros_(self.query_bias)

    @torch.no_grad()
    def start(self, centres: Tensor, spread: Tensor) -> None:
        """See `Form.start`: a query weighs a class as attention would weigh its centre."""
        super().start(centres, spread)
        self.query_weight.copy_(self.scale * centres.transpose(1, 2))
        self.query_bias.zero_()

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """See `Classes.forward`."""
        share = self.assign(k)
        size = share.sum(2) + self.eps
        values = (share / size.unsqueeze(2)).transpose(2, 3) @ v
        logits = q @ self.query_weight + (self.query_bias + size.log()).unsqueeze(2)
        logits = torch.cat([self.scale * (q @ prefix_k.transpose(2, 3)), logits], 3)
        return logits.softmax(-1) @ torch.cat([prefix_v, values], 2)


class Gated(Kernel):
    """MetaLA's form: no keys, states that forget, and queries that choose among them.

    A token fades the states that it belongs to, alpha_jm = 1 - rate_m a_jm, and is written into them by 1 - alpha_jm
    (k = 1 - alpha), in each scan order. A query takes the mean of the states by softmax(q Wq + bq), and is divided by
    the sum of the weights, which is below one near the beginning of a scan. What the patches weigh beside the tokens
    before them is that of keys with the mean and the variance of this image's, as log(mean exp) of a normal law.

    Attributes:
        nominal_grid: the grid that the weights were trained on, see `metala_vision.layers.decay`; (0, 0) is any.

    Args:
        scan: orders of the scan.
    """

    def __init__(
        self, num_heads: int, head_dim: int, states: int, scan: tuple[str, ...] = ("row",), device=None, dtype=None
    ):
        super().__init__(num_heads, head_dim, states, device, dtype)
        self.scan, self.orders = tuple(scan), ",".join(scan)
        self.nominal_grid: tuple[int, int] = (0, 0)
        self.largest_fade: float = LARGEST_FADE
        self.rate = nn.Parameter(torch.empty(num_heads, states, device=device, dtype=dtype))

    def extra_repr(self) -> str:
        """What its repr shows."""
        return f"scan={self.scan}"

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Random states, each as likely as the others, that fade by half where they are written."""
        super().reset_parameters()
        nn.init.zeros_(self.rate)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """See `Classes.forward`."""
        share = self.assign(k)
        fade = torch.log1p(-self.largest_fade * self.rate.sigmoid().unsqueeze(1) * share)
        fade = fade * decay_scale(grid, self.nominal_grid)
        choice = (q @ self.query_weight + self.query_bias.unsqueeze(1)).softmax(-1)
        ones = torch.ones_like(v[..., :8])  # as few as the kernels take at once; they become the sums of the weights
        q_, g_, v_ = (x.transpose(1, 2) for x in (choice, fade, torch.cat([v, ones], 3)))
        o = attention(q_, g_, None, v_, grid, self.orders).transpose(1, 2)
        o = o[..., : self.head_dim] / (o[..., self.head_dim : self.head_dim + 1] + self.eps)
        mean, variance = k.mean(2, keepdim=True), k.var(2, unbiased=False, keepdim=True)
        tokens = share.detach().sum((2, 3), keepdim=True)  # N, as a tensor: tracers have no logarithm of a size
        mass = self.scale * (q @ mean.transpose(2, 3)) + 0.5 * self.scale**2 * ((q * q) @ variance.transpose(2, 3))
        logits = torch.cat([self.scale * (q @ prefix_k.transpose(2, 3)), mass + tokens.log()], 3)
        weights = logits.softmax(-1)
        prefix = prefix_k.shape[2]
        return weights[..., :prefix] @ prefix_v + weights[..., prefix:] * o


FORMS: dict[str, type[Form]] = {"classes": Classes, "kernel": Kernel, "metala": Gated}
"""The forms by their names."""
