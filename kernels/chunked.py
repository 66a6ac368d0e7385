"""Gated linear attention in chunks, in plain PyTorch: any device, any float dtype, differentiable any number of times.

Inside a chunk the scan is two matrix products under a triangular mask; between chunks only the state [K, V] travels.
Time and memory are linear in N, and the number of operations issued grows with log(N), since the states of the chunks
are combined by a tree and not by a loop.

Shapes: B batch, H heads, C chunks, T tokens of a chunk, K key channels, V value channels; g is the log-decay.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# exp() inside a chunk reaches T / 2 * |gate floor| = 40 nats: float32 stops at 88, and gradients need room below that.
CHUNK = 16
# Children of a node in the tree of chunk states: their pairwise decays are formed explicitly, [GROUP, GROUP, K].
GROUP = 16


def chunked(
    q: Tensor, log_decay: Tensor, v: Tensor, k: Tensor, grid: tuple[int, int], scan: tuple[str, ...], scale: float
) -> Tensor:
    """`reference.recurrence` in chunks: the same arguments and the same [B, N, H, V]."""
    out = (q * k).sum(-1, keepdim=True) * v  # a token's own term counts once, so the scans below are strict
    for axis in ("row", "column"):
        directions = [order for order in scan if order.startswith(axis)]
        if not directions:
            continue
        # [B, N, H, *] -> [B, H, N, *] along the axis; the reverse direction needs no flip, only the other triangle
        tokens = (_along(axis, x, grid) for x in (q, log_decay, k, v))
        q_chunks, g_chunks, k_chunks, v_chunks = (_split(x, grid[0] * grid[1]) for x in tokens)
        passes = [_strict_scan(q_chunks, g_chunks, k_chunks, v_chunks, x.endswith("_reverse")) for x in directions]
        strict = passes[0] if len(passes) == 1 else passes[0] + passes[1]
        strict = strict.flatten(2, 3)[:, :, : grid[0] * grid[1]]
        out = out + _back(axis, strict, grid)
    return scale * out


def _along(axis: str, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, N, H, X] row-major -> [B, H, N, X] in the sequence of the axis."""
    if axis == "row":
        return x.transpose(1, 2)
    return x.unflatten(1, grid).permute(0, 3, 2, 1, 4).flatten(2, 3)


def _back(axis: str, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of `_along`."""
    if axis == "row":
        return x.transpose(1, 2)
    return x.unflatten(2, grid[::-1]).permute(0, 3, 2, 1, 4).flatten(1, 2)


def _split(x: Tensor, tokens: int) -> Tensor:
    """[B, H, N, X] -> [B, H, C, T, X]; the padding tokens have k = v = q = 0 and decay 1, so they change nothing."""
    padding = -tokens % CHUNK
    if _is_open(padding) or padding:
        x = F.pad(x, (0, 0, 0, padding))
    return x.unflatten(2, (-1, CHUNK))


def _running(x: Tensor, dim: int, reverse: bool) -> Tensor:
    """Running sum along `dim` in scan direction, each entry included."""
    return x.flip(dim).cumsum(dim).flip(dim) if reverse else x.cumsum(dim)


def _strict_scan(q: Tensor, g: Tensor, k: Tensor, v: Tensor, reverse: bool) -> Tensor:
    """Sum over the tokens strictly before t, [B, H, C, T, V]; `reverse` scans from the last token to the first.

    The decay from s to t is factored as exp(from_middle_t) * exp(-from_middle_s). Every exponent is a sum of its own
    terms, never the difference of two long sums: near the gate floor that difference would cost float32 two digits.
    """
    into = _running(g, 3, reverse)  # log-decay of the chunk's incoming state at t
    out_of = _running(g, 3, not reverse) - g  # log-decay of token s until it leaves the chunk
    first, second = (1, 0) if reverse else (0, 1)
    halves = g.unflatten(3, (2, CHUNK // 2)).unbind(3)
    from_middle: list[Tensor] = [g, g]
    from_middle[first] = halves[first] - _running(halves[first], 3, not reverse)
    from_middle[second] = _running(halves[second], 3, reverse)
    factor = torch.cat(from_middle, 3)
    scores = (q * factor.exp()) @ (k * (-factor).exp()).transpose(-1, -2)  # [B, H, C, T, T]
    scores = scores.triu(1) if reverse else scores.tril(-1)
    update = (k * out_of.exp()).transpose(-1, -2) @ v  # [B, H, C, K, V]
    incoming = _states(g.sum(3), update, reverse)
    return scores @ v + (q * into.exp()) @ incoming


def _states(log_decay: Tensor, update: Tensor, reverse: bool) -> Tensor:
    """State that enters each chunk: [B, H, C, K] log-decays and [B, H, C, K, V] updates -> [B, H, C, K, V].

    entering_c = sum over the chunks j before c of exp(sum of the log-decays between them) * update_j. Up to GROUP
    chunks it is one masked product per key channel; more are grouped, and the groups are scanned by the same rule.
    """
    chunks = log_decay.shape[2]
    if _is_open(chunks):  # an open number of chunks is not grouped, and memory grows with its square
        return _states_within(log_decay, update, reverse)
    if chunks == 1:
        return torch.zeros_like(update)
    if chunks <= GROUP:
        return _states_within(log_decay, update, reverse)
    padding = -chunks % GROUP
    log_decay = F.pad(log_decay, (0, 0, 0, padding)).unflatten(2, (-1, GROUP))  # [B, H, C / GROUP, GROUP, K]
    update = F.pad(update, (0, 0, 0, 0, 0, padding)).unflatten(2, (-1, GROUP))
    into = _running(log_decay, 3, reverse) - log_decay
    out_of = _running(log_decay, 3, not reverse) - log_decay
    group_update = (out_of.exp().unsqueeze(-1) * update).sum(3)
    entering_group = _states(log_decay.sum(3), group_update, reverse)
    entering = _states_within(log_decay, update, reverse) + into.exp().unsqueeze(-1) * entering_group.unsqueeze(3)
    return entering.flatten(2, 3)[:, :, :chunks]


def _states_within(log_decay: Tensor, update: Tensor, reverse: bool) -> Tensor:
    """`_states` for one group: [..., C, K] and [..., C, K, V], every pair of chunks explicit."""
    pair = _pairs(log_decay, reverse).unsqueeze(-1)  # [c, j]: j before c
    # decay[c, j] sums the chunks strictly between j and c: the running sum down column j, over the rows after j
    between = log_decay.unsqueeze(-2).where(pair, 0.0)
    decay = _running(between, -3, reverse) - between
    decay = decay.masked_fill(~pair, float("-inf")).exp()  # [..., c, j, K]
    return torch.einsum("...cjk,...jkv->...ckv", decay, update)


def _pairs(x: Tensor, reverse: bool) -> Tensor:
    """Mask [..., C, C] for x [..., C, K]: whether the chunk of the column comes before that of the row."""
    if _is_open(x.shape[-2]):
        place = (0 * x[..., :1] + 1).cumsum(-2)  # from x: an exporter would record torch.ones at one size
        return place < place.transpose(-1, -2) if reverse else place > place.transpose(-1, -2)
    pair = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device)
    return pair.triu(1) if reverse else pair.tril(-1)


def _is_open(size: int | torch.SymInt | Tensor) -> bool:
    """Whether torch.onnx keeps `size` open: it would record a branch only as the size at hand takes it."""
    return not isinstance(size, int) and torch.onnx.is_in_onnx_export()
