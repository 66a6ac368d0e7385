"""MetaLA, the token mixer: meta linear attention with 2-D aware scans (arXiv 2411.10741, eq. A31 to A37).

Shapes: B batch, N tokens of the grid, C channels, H heads, K key channels and V value channels of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metala_vision.kernels import SCAN_ORDERS

from .decay import decay_scale, spread_logits
from .local_conv import CausalConv, GridConv, NoConv
from .operators import mixer
from .watched import is_plain_product


def is_scan(scan: object) -> bool:
    """Whether `scan` is a tuple or list of scan orders, not empty and none twice."""
    if not isinstance(scan, (tuple, list)) or not all(isinstance(order, str) for order in scan):
        return False
    return bool(scan) and len(set(scan)) == len(scan) and set(scan) <= set(SCAN_ORDERS)


class MetaLA(nn.Module):
    """Meta linear attention on a grid of tokens.

    x = SiLU(DWConv(x)); q = x Wq; g = scale * logsigmoid(x Wa + ba) / 16; k = 1 - exp(g); v = x Wv; z = x Wg + b
    o = gated_linear_attention(q, g, v) + sigmoid((q . (w_aug * k)) v)
    y = (SiLU(z) * LayerNorm_per_head(o)) Wo

    All scan orders share the same parameters. The scale is that of `decay.decay_scale` where `nominal_grid`, the grid
    that the weights were trained on, is set, and otherwise 1. The bias ba is not in the paper: it lets the channels of
    a head begin with memories of different lengths, see `decay.spread_logits`.

    Args:
        dim: channels C; query and decay have `dim / 2` channels each.
        num_heads: heads H, with K = dim / 2 / H and V = dim / H.
        scan: scan orders, out of `metala_vision.kernels.SCAN_ORDERS`.
        causal: the paper's 1-D layer: the convolution sees the last four tokens only, and `scan` must be ("row",).
        local_conv: False leaves out convolution and SiLU, as the paper's ablation does.
        self_aug: False keeps w_aug at zero: the term is then constant over a head, and the LayerNorm removes it.
        decay_bias: False leaves out ba.
        proj_drop: dropout on the output.

    Raises:
        ValueError: `2 * num_heads` does not divide `dim`; an unknown scan; causal with any scan but ("row",).
    """

    aug_weight: Tensor  # a parameter, or a buffer of zeros

    def __init__(
        self,
        dim: int,
        num_heads: int,
        scan: tuple[str, ...] = ("row", "row_reverse"),
        causal: bool = False,
        local_conv: bool = True,
        self_aug: bool = True,
        decay_bias: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if num_heads < 1 or dim % (2 * num_heads):
            raise ValueError(f"num_heads: got {num_heads} with dim {dim}, expected 2 * num_heads to divide dim")
        if not is_scan(scan):
            raise ValueError(f"scan: got {scan!r}, expected a non-empty tuple out of {SCAN_ORDERS}, none twice")
        if causal and tuple(scan) != ("row",):
            raise ValueError(f"scan: got {scan!r} with causal=True, expected ('row',)")
        dd = {"device": device, "dtype": dtype}
        self.dim = dim
        self.num_heads = num_heads
        self.key_dim = dim // 2 // num_heads
        self.value_dim = dim // num_heads
        self.scan = tuple(scan)
        self.nominal_grid: tuple[int, int] = (0, 0)
        self.orders = ",".join(scan)  # for the operator: tracers take a string, but no tuple of strings
        self.conv = (CausalConv(dim, **dd) if causal else GridConv(dim, **dd)) if local_conv else NoConv()
        self.in_proj = nn.Linear(dim, 3 * dim, bias=False, **dd)  # q, decay, v, gate: dim/2, dim/2, dim, dim
        self.decay_bias: nn.Parameter | None = None
        if decay_bias:
            self.decay_bias = nn.Parameter(spread_logits(self.key_dim, num_heads, **dd))
        self.gate_bias = nn.Parameter(torch.zeros(dim, **dd))
        aug_weight = torch.zeros(dim // 2, **dd)
        if self_aug:
            self.aug_weight = nn.Parameter(aug_weight)
        else:
            self.register_buffer("aug_weight", aug_weight, persistent=False)
        self.out_proj = nn.Linear(dim, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        """What its repr shows beside the modules."""
        return f"num_heads={self.num_heads}, scan={self.scan}"

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] row-major tokens of a (rows, cols) grid -> [B, N, C]."""
        x = self._project(self.conv(x, grid))
        scale = decay_scale(grid, self.nominal_grid)
        x = mixer(x, self.gate_bias, self.aug_weight, self.num_heads, grid, self.orders, scale)
        return self.proj_drop(self.out_proj(x))

    def bias_in(self) -> Tensor | None:
        """The bias of `in_proj`'s product, [3 C]: that of the decay, and zeros for query, value and gate."""
        bias = self.decay_bias
        if bias is None:
            return None
        # not by padding, which the TorchScript exporter of ONNX turns into a slice that it warns of
        return torch.cat([bias.new_zeros(self.dim // 2), bias, bias.new_zeros(2 * self.dim)])

    def _project(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, 3 C]."""
        bias = self.bias_in()
        if bias is None:
            return self.in_proj(x)
        plain = False
        if not torch.jit.is_scripting():
            plain = isinstance(x, Tensor) and is_plain_product(self.in_proj)
        if plain:
            return F.linear(x, self.in_proj.weight, bias)  # in the product itself it costs nothing
        x = self.in_proj(x)
        return x + bias.to(x.dtype)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Older weights lack the bias of the decay: it is zero then, so that they give the numbers that they gave."""
        key, beside = f"{prefix}decay_bias", state_dict.get(f"{prefix}gate_bias")
        if self.decay_bias is not None and key not in state_dict and beside is not None:
            state_dict[key] = beside.new_zeros(self.decay_bias.shape)  # of their dtype and device, for assign=True
        super()._load_from_state_dict(state_dict, prefix, *args)
