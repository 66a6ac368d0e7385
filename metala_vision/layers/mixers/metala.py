"""MetaLA, the token mixer: meta linear attention with 2-D aware scans (arXiv 2411.10741, eq. A31 to A37).

Shapes: B batch, N tokens of the grid, C channels, H heads, K key channels and V value channels of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metala_vision.kernels.unfused import gate_log_decay
from metala_vision.layers.operators import mixer
from metala_vision.layers.watched import is_plain_product

from .base import ScannedMixer
from .registry import register_mixer


@register_mixer("metala")
class MetaLA(ScannedMixer):
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
        half = dim // 2
        settings = scan, causal, local_conv, decay_bias, proj_drop, device, dtype
        super().__init__(dim, num_heads, half // max(num_heads, 1), (half, half), *settings)
        aug_weight = torch.zeros(half, device=device, dtype=dtype)
        if self_aug:
            self.aug_weight = nn.Parameter(aug_weight)
        else:
            self.register_buffer("aug_weight", aug_weight, persistent=False)

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialises what is not in a module of its own."""
        super().reset_parameters()
        nn.init.zeros_(self.aug_weight)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, C] row-major tokens of a (rows, cols) grid -> [B, N, C]."""
        x = self._project(self.conv(x, grid))
        scale = self.decay_scale(grid)
        return self.merge(mixer(x, self.gate_bias, self.aug_weight, self.num_heads, grid, self.orders, scale))

    def choose(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """See `ScannedMixer.choose`: what the fused operator of `forward` takes apart inside."""
        q, logits, v, z = self._project(self.conv(x, grid)).split(self.widths, -1)
        log_decay = gate_log_decay(self.per_head(logits), self.decay_scale(grid))
        return self.per_head(q), log_decay, None, self.per_head(v), z

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
