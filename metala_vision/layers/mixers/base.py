"""What the token mixers of this package share: a short convolution, one projection into parts, one projection out.

Shapes: B batch, N tokens of the grid, C channels, H heads, K key channels and V value channels of a head.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metala_vision.kernels import SCAN_ORDERS
from metala_vision.kernels.reference import NORM_EPS
from metala_vision.layers.decay import decay_scale, spread_logits
from metala_vision.layers.local_conv import CausalConv, GridConv, NoConv
from metala_vision.layers.operators import attention


def is_scan(scan: object) -> bool:
    """Whether `scan` is a tuple or list of scan orders, not empty and none twice."""
    if not isinstance(scan, (tuple, list)) or not all(isinstance(order, str) for order in scan):
        return False
    return bool(scan) and len(set(scan)) == len(scan) and set(scan) <= set(SCAN_ORDERS)


class TokenMixer(nn.Module):
    """A convolution, a product into parts of given widths, something between tokens, and a product out.

    Args:
        dim: channels C; `2 * num_heads` divides it.
        num_heads: heads H.
        widths: channels of the parts that `project` returns.
        causal: the convolution sees the last four tokens of a sequence instead of 3 x 3 neighbours.
        local_conv: False leaves out convolution and SiLU.
        proj_drop: dropout on the output.

    Raises:
        ValueError: `2 * num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        widths: tuple[int, ...],
        causal: bool = False,
        local_conv: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if num_heads < 1 or dim % (2 * num_heads):
            raise ValueError(f"num_heads: got {num_heads} with dim {dim}, expected 2 * num_heads to divide dim")
        dd = {"device": device, "dtype": dtype}
        self.dim = dim
        self.num_heads = num_heads
        self.value_dim = dim // num_heads
        self.causal = causal
        self.widths = list(widths)
        self.norm_eps: float = NORM_EPS  # TorchScript takes it from here alone
        self.conv = (CausalConv(dim, **dd) if causal else GridConv(dim, **dd)) if local_conv else NoConv()
        self.in_proj = nn.Linear(dim, sum(widths), bias=False, **dd)
        self.out_proj = nn.Linear(dim, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        """What its repr shows beside the modules."""
        return f"num_heads={self.num_heads}"

    def project(self, x: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """[B, N, C] -> a part [B, N, width] for each width."""
        return self.in_proj(self.conv(x, grid)).split(self.widths, -1)

    @torch.jit.ignore
    def map_of_values(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What this mixer does between tokens [B, N, C], as a linear map of its values.

        Returns:
            The values [B, N, H, V], and the function from values to what they are mixed into [B, N, H, V], before any
            norm or gate. It is linear: a mixer's weights do not depend on its values.
        """
        raise NotImplementedError

    def per_head(self, x: Tensor) -> Tensor:
        """[B, N, H X] -> [B, N, H, X]."""
        return x.unflatten(-1, (self.num_heads, -1))

    def merge(self, x: Tensor) -> Tensor:
        """[B, N, C], heads side by side -> [B, N, C], through the last projection."""
        return self.proj_drop(self.out_proj(x))


class ScannedMixer(TokenMixer):
    """A mixer that is a choice of q, k, v and decay for `gated_linear_attention`, with a gate on its output.

    y = (SiLU(z + b) * LayerNorm_per_head(o)) Wo, as in MetaLA (arXiv 2411.10741, eq. 15 to 18), whose table of f_q,
    f_k, f_v and f_a the subclasses are lines of. Value v and gate z are the last two parts of the projection.

    Attributes:
        nominal_grid: the grid that the weights were trained on; scans remember the same share of an image on any
            other, see `metala_vision.layers.decay`. (0, 0): as many tokens.

    Args:
        dim: as for `TokenMixer`.
        num_heads: as for `TokenMixer`; V = dim / H.
        key_dim: key channels K of a head.
        widths: channels of the parts before value and gate.
        scan: scan orders, out of `metala_vision.kernels.SCAN_ORDERS`.
        causal: a sequence, read from its first token on; `scan` must be ("row",).
        local_conv: as for `TokenMixer`.
        decay_bias: whether there is a bias in the decay, at first `first_decay_bias`.
        proj_drop: as for `TokenMixer`.

    Raises:
        ValueError: what `TokenMixer` refuses; an unknown scan; causal with any scan but ("row",).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        key_dim: int,
        widths: tuple[int, ...],
        scan: tuple[str, ...] = ("row", "row_reverse"),
        causal: bool = False,
        local_conv: bool = True,
        decay_bias: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        if not is_scan(scan):
            raise ValueError(f"scan: got {scan!r}, expected a non-empty tuple out of {SCAN_ORDERS}, none twice")
        if causal and tuple(scan) != ("row",):
            raise ValueError(f"scan: got {scan!r} with causal=True, expected ('row',)")
        super().__init__(dim, num_heads, (*widths, dim, dim), causal, local_conv, proj_drop, device, dtype)
        self.key_dim = key_dim
        self.scan = tuple(scan)
        self.orders = ",".join(scan)  # for the operator: tracers take a string, but no tuple of strings
        self.nominal_grid: tuple[int, int] = (0, 0)
        self.decay_bias: nn.Parameter | None = None
        if decay_bias:
            self.decay_bias = nn.Parameter(self.first_decay_bias(device, dtype))
        self.gate_bias = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))

    def extra_repr(self) -> str:
        """What its repr shows beside the modules."""
        return f"num_heads={self.num_heads}, scan={self.scan}"

    @torch.jit.ignore
    def first_decay_bias(self, device=None, dtype=None) -> Tensor:
        """The bias of the decay at first: channels begin with memories of different lengths."""
        return spread_logits(self.key_dim, self.num_heads, device, dtype)

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialises what is not in a module of its own."""
        nn.init.zeros_(self.gate_bias)
        if self.decay_bias is not None:
            with torch.no_grad():
                self.decay_bias.copy_(self.first_decay_bias())

    def decay_scale(self, grid: tuple[int, int]) -> float:
        """The factor on the log-decay on a grid."""
        return decay_scale(grid, self.nominal_grid)

    def choose(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """Tokens [B, N, C] -> q, log-decay and k [B, N, H, K], v [B, N, H, V], gate [B, N, C].

        Without k it is 1 - decay.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] row-major tokens of a (rows, cols) grid -> [B, N, C]."""
        q, log_decay, k, v, z = self.choose(x, grid)
        return self.gated(attention(q, log_decay, k, v, grid, self.orders), z)

    @torch.jit.ignore
    def map_of_values(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """See `TokenMixer.map_of_values`."""
        q, log_decay, k, v, _ = self.choose(x, grid)
        return v, lambda values: attention(q, log_decay, k, values, grid, self.orders)

    def gated(self, o: Tensor, z: Tensor) -> Tensor:
        """The output of the scans [B, N, H, V] and the gate [B, N, C] -> [B, N, C], through the last projection."""
        o = F.layer_norm(self.per_head(o.flatten(2)), [self.value_dim], eps=self.norm_eps)
        return self.merge(F.silu(z + self.gate_bias) * o.flatten(2))
