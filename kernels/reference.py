"""Gated linear attention by definition: the recurrence token by token, and the explicit attention map.

Slow and obvious on purpose. Every other backend is tested against this file.

Shapes: B batch, N tokens (rows * cols of the grid, row-major), H heads, K key channels, V value channels.
"""

import torch
from torch import Tensor

SCAN_ORDERS = ("row", "row_reverse", "column", "column_reverse")
GATE_FLOOR = -5.0  # decay 0.0067 per token; part of the definition, so that every backend can factor its exponentials
# A MetaLA layer decays by sigmoid(logit) ** (1 / GATE_TEMPERATURE): with logits of zero it remembers about 24 tokens.
GATE_TEMPERATURE = 16.0
NORM_EPS = 1e-5  # of a MetaLA layer's LayerNorm per head


def scan_order(order: str, rows: int, cols: int, device: torch.device | None = None) -> Tensor:
    """Token indices [N] of a rows x cols grid, in the sequence in which a scan order visits them."""
    index = torch.arange(rows * cols, device=device).view(rows, cols)
    if order.startswith("column"):
        index = index.t()
    index = index.reshape(-1)
    return index.flip(0) if order.endswith("_reverse") else index


def clamp_log_decay(log_decay: Tensor) -> Tensor:
    """Clamps `log_decay` to [GATE_FLOOR, 0]; the gradient is zero at both ends and beyond them, and NaN stays NaN.

    torch.clamp would not do: its gradient at the ends themselves is 1 in some releases of torch and 0 in others.
    """
    return log_decay.masked_fill(log_decay <= GATE_FLOOR, GATE_FLOOR).masked_fill(log_decay >= 0, 0.0)


def recurrence(
    q: Tensor, log_decay: Tensor, v: Tensor, k: Tensor, grid: tuple[int, int], scan: tuple[str, ...], scale: float
) -> Tensor:
    """S_t = diag(exp(g_t)) S_{t-1} + k_t^T v_t,  o_t = scale * q_t S_t, summed over the scan orders.

    q, log_decay, k are [B, N, H, K] and v is [B, N, H, V], all of one floating dtype; `log_decay` is already clamped.
    A token's own term counts once, however many orders there are. Returns [B, N, H, V].
    """
    own_term = (q * k).sum(-1, keepdim=True) * v  # [B, N, H, V]
    out = own_term
    for order in scan:
        index = scan_order(order, *grid, device=q.device)
        state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])  # [B, H, K, V]
        steps = []
        for t in index.tolist():
            state = log_decay[:, t].exp().unsqueeze(-1) * state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
            steps.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
        scanned = torch.stack(steps, dim=1)[:, index.argsort()]  # back to row-major tokens
        out = out + scanned - own_term
    return scale * out


def attention_map(
    q: Tensor, log_decay: Tensor, k: Tensor, grid: tuple[int, int], scan: tuple[str, ...], scale: float
) -> Tensor:
    """The map A [B, H, N, N] with out = A v: A[t, s] sums scale * q_t . (decay from s to t * k_s) over the orders.

    A[t, t], a token's own term, counts once. The arguments are those of `recurrence`. Memory grows as N^2 * K, so
    the map is for tests and pictures, not for training.
    """
    tokens = q.shape[1]
    total = torch.diag_embed((q * k).sum(-1).transpose(1, 2))  # a token's own term, once: [B, H, N, N]
    for order in scan:
        index = scan_order(order, *grid, device=q.device)
        q_, g_, k_ = (x[:, index].transpose(1, 2) for x in (q, log_decay, k))  # [B, H, N, K]
        cumulative = g_.cumsum(2)
        decay = cumulative.unsqueeze(3) - cumulative.unsqueeze(2)  # [B, H, t, s, K]: log of the product over s < j <= t
        earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril(-1)
        decay = decay.masked_fill(~earlier.unsqueeze(-1), float("-inf")).exp()
        ordered = torch.einsum("bhtk,bhtsk,bhsk->bhts", q_, decay, k_)
        back = index.argsort()
        total = total + ordered[:, :, back][:, :, :, back]
    return scale * total
