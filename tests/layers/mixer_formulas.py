"""The token mixers by the formulas of their papers, with every map [N, N] explicit: slow, and of other code.

Each takes a mixer without a convolution, tokens [N, C] of one image, and the grid, and returns [N, C]. Only the weights
come from the mixer, so that their gradients can be compared too.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

FLOOR = math.exp(-5)  # of a decay, by the definition of the operator


def visits(order: str, rows: int, cols: int) -> list[int]:
    places = [(r, c) for r in range(rows) for c in range(cols)]
    if order.startswith("column"):
        places = [(r, c) for c in range(cols) for r in range(rows)]
    sequence = [r * cols + c for r, c in places]
    return sequence[::-1] if order.endswith("_reverse") else sequence


def parts_of(mixer, x: Tensor, *widths: int) -> list[Tensor]:
    """[N, C] -> parts [N, width] of the fused projection, in its sequence."""
    return [x @ weight.T for weight in mixer.in_proj.weight.split(widths)]


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[N, H X] -> [H, N, X]."""
    return x.reshape(x.shape[0], heads, -1).transpose(0, 1)


def joined(heads: Tensor) -> Tensor:
    """[H, N, V] -> [N, H V]."""
    return heads.transpose(0, 1).reshape(heads.shape[1], -1)


def normed(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def scan_map(q: Tensor, decay: Tensor, k: Tensor, orders: tuple[str, ...], grid: tuple[int, int]) -> Tensor:
    """[N, K] each -> [N, N]: q_t . (product of the decays after s up to t, times k_s), a token's own term once."""
    tokens = q.shape[0]
    entries = {(t, t): (q[t] * k[t]).sum() for t in range(tokens)}
    for order in orders:
        sequence = visits(order, *grid)
        for i, t in enumerate(sequence):
            factor = torch.ones_like(q[0])
            for j in range(i - 1, -1, -1):
                factor = factor * decay[sequence[j + 1]]
                s = sequence[j]
                entries[t, s] = entries.get((t, s), 0) + (q[t] * factor * k[s]).sum()
    zero = q.new_zeros(())
    return torch.stack([torch.stack([entries.get((t, s), zero) for s in range(tokens)]) for t in range(tokens)])


def scanned(mixer, q, decay, k, v, z, grid, skip=None) -> Tensor:
    """[H, N, K], the same, the same, [H, N, V], [N, C] -> [N, C]; `skip` [H] weighs the values' way past the scan."""
    maps = [scan_map(*head, mixer.scan, grid) * q.shape[-1] ** -0.5 for head in zip(q, decay, k)]
    o = torch.stack(maps) @ v
    if skip is not None:
        o = o + skip[:, None, None] * v
    heads = mixer.num_heads
    o = normed(joined(o).reshape(z.shape[0], heads, -1)).reshape(z.shape)
    gate = z + mixer.gate_bias
    return (gate * torch.sigmoid(gate) * o) @ mixer.out_proj.weight.T


def gla(mixer, x, grid):
    dim, heads = mixer.dim, mixer.num_heads
    q, k, low, v, z = parts_of(mixer, x, dim // 2, dim // 2, 16, dim, dim)
    decay = torch.sigmoid(low @ mixer.decay_proj.weight.T + mixer.decay_bias) ** (mixer.decay_scale(grid) / 16)
    return scanned(mixer, *(heads_of(part, heads) for part in (q, decay, k, v)), z, grid)


def retnet(mixer, x, grid):
    dim, heads = mixer.dim, mixer.num_heads
    q, k, v, z = parts_of(mixer, x, dim // 2, dim // 2, dim, dim)
    q, k, v = (heads_of(part, heads) for part in (q, k, v))
    q, k = turned(q, grid, mixer.causal), turned(k, grid, mixer.causal)
    gamma = torch.tensor([(1 - 2.0 ** -(5 + h)) ** mixer.decay_scale(grid) for h in range(heads)], dtype=x.dtype)
    return scanned(mixer, q, gamma[:, None, None].expand(q.shape), k, v, z, grid)


def ssd(mixer, x, grid):
    dim, heads = mixer.dim, mixer.num_heads
    width = dim // 2 // heads
    q, k, step, v, z = parts_of(mixer, x, width, width, heads, dim, dim)
    step = torch.log1p(torch.exp(step + mixer.decay_bias)).T[:, :, None] * mixer.decay_scale(grid)  # [H, N, 1]
    decay = torch.exp(-torch.exp(mixer.log_rate)[:, None, None] * step).expand(heads, -1, width).clamp(FLOOR)
    q, k = q.expand(heads, -1, -1), k * step
    return scanned(mixer, q, decay, k, heads_of(v, heads), z, grid, mixer.skip)


def hgrn(mixer, x, grid):
    """The recurrence of each channel, h_t = f h_{t-1} + (1 - f) c, as a map of a head with one channel."""
    dim = mixer.dim
    logits, c, z = parts_of(mixer, x, dim, dim, dim)
    decay = (torch.sigmoid(logits + mixer.decay_bias) ** mixer.decay_scale(grid)).clamp(FLOOR)
    c = c + mixer.value_bias
    decay, c = heads_of(decay, dim), heads_of(c * torch.sigmoid(c), dim)
    return scanned(mixer, torch.ones_like(c), decay, 1 - decay, c, z, grid)


def softmax(mixer, x, grid):
    heads = mixer.num_heads
    q, k, v = (heads_of(part, heads) for part in parts_of(mixer, x, *3 * [mixer.dim]))
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    if mixer.causal:
        scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -math.inf)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return joined(weights @ v) @ mixer.out_proj.weight.T


def inline(mixer, x, grid):
    """arXiv 2412.06590: q_i . k_j - mean_s q_i . k_s + 1 / N, and 9 weights a channel on the neighbours of v."""
    heads, tokens = mixer.num_heads, x.shape[0]
    q, k, v = parts_of(mixer, x, *3 * [mixer.dim])
    scores = heads_of(q, heads) @ heads_of(k, heads).transpose(1, 2) / math.sqrt(mixer.value_dim)
    # k^T v / N is a mean over the keys, and so the products are of 1 / N of the scores
    weights = (scores - scores.mean(-1, keepdim=True) + 1) / tokens
    o = joined(weights @ heads_of(v, heads))
    taps = x.mean(0)
    for layer in (mixer.residual.fc1, mixer.residual.fc2):
        taps = F.gelu(taps) if layer is mixer.residual.fc2 else taps
        taps = torch.cat([w @ t for w, t in zip(layer.weight[..., 0].chunk(heads), taps.chunk(heads))]) + layer.bias
    taps = taps.reshape(mixer.dim, 3, 3)
    local = []
    for r, c in ((r, c) for r in range(grid[0]) for c in range(grid[1])):
        near = [
            taps[:, i, j] * v[(r + i - 1) * grid[1] + c + j - 1]
            for i in range(3)
            for j in range(3)
            if 0 <= r + i - 1 < grid[0] and 0 <= c + j - 1 < grid[1]
        ]
        local.append(torch.stack(near).sum(0))
    return (o + torch.stack(local)) @ mixer.out_proj.weight.T


def normalized(mixer, x, grid):
    """arXiv 2405.15731 by its recurrence: h_i = (n_{i-1} / n_i) h_{i-1} + k_i^T v_i / n_i, o_i = q_i h_i."""
    heads, tokens = mixer.num_heads, x.shape[0]
    q, k, v, log_norm = parts_of(mixer, x, *3 * [mixer.dim], heads)
    q, k, v = (heads_of(part, heads) for part in (q, k, v))
    norm = torch.exp(log_norm + mixer.norm_bias).T  # [H, N]
    states = [k[:, 0, :, None] * v[:, 0, None] / norm[:, 0, None, None]]
    for i in range(1, tokens):
        kept = norm[:, i - 1, None, None] / norm[:, i, None, None] * states[-1]
        states.append(kept + k[:, i, :, None] * v[:, i, None] / norm[:, i, None, None])
    if not mixer.causal:  # every token reads the last state, by its own normaliser, as a mean
        states = [states[-1] * norm[:, -1, None, None] / norm[:, i, None, None] / tokens for i in range(tokens)]
    o = torch.stack([torch.einsum("hk,hkv->hv", q[:, i], state) for i, state in enumerate(states)], 1)
    return joined(o / math.sqrt(mixer.value_dim)) @ mixer.out_proj.weight.T


def zeros(mixer, x, grid):
    """arXiv 2602.05230 with the weights r [N, N] of every head explicit; over all tokens unless it is causal."""
    dim, heads, tokens = mixer.dim, mixer.num_heads, x.shape[0]
    q, k, u, v, first, higher = parts_of(mixer, x, *4 * [dim], heads, heads)
    q, k, u, v = (heads_of(part, heads) for part in (q, k, u, v))
    q, k = turned(q, grid, mixer.causal), turned(k, grid, mixer.causal)
    first, higher = torch.sigmoid(first), torch.sigmoid(higher)
    outputs = []
    for h in range(heads):
        weight = torch.exp(mixer.log_prior_tokens[h])
        rows = []
        for t in range(tokens):
            seen = t + 1 if mixer.causal else tokens
            s = []
            for i in range(seen):
                counted = i + 1 if mixer.causal else tokens
                mean = (weight * mixer.prior.view(heads, -1)[h] + u[h, :counted].sum(0)) / (weight + counted)
                s.append(-(u[h, i] @ mean) / math.sqrt(mixer.value_dim))
            s = torch.stack(s)
            deviation = s - s.mean()
            rest = s.exp() / s.exp().sum() - 1 / seen - deviation / seen
            r = first[t, h] * deviation / seen + higher[t, h] * rest
            assert r.sum().abs() < 1e-12
            cosine = torch.stack([q[h, t] @ k[h, i] / (q[h, t].norm() * k[h, i].norm()) for i in range(seen)])
            rows.append((r * cosine) @ v[h, :seen])
        outputs.append(torch.stack(rows))
    return joined(normed(torch.stack(outputs))) @ mixer.out_proj.weight.T


def turned(x: Tensor, grid: tuple[int, int], causal: bool) -> Tensor:
    """Rotary embedding of [H, N, K] by complex numbers: half the channels by the row, half by the column."""
    places = [(t,) for t in range(x.shape[1])] if causal else [(r, c) for r in range(grid[0]) for c in range(grid[1])]
    base = 10_000 if causal else 100
    axes = len(places[0])
    pairs = x.shape[-1] // (2 * axes)
    out = x.clone()
    for axis in range(axes):
        start = axis * 2 * pairs
        numbers = torch.complex(x[..., start : start + pairs], x[..., start + pairs : start + 2 * pairs])
        angles = torch.tensor([[p[axis] * base ** (-i / pairs) for i in range(pairs)] for p in places], dtype=x.dtype)
        numbers = numbers * torch.polar(torch.ones_like(angles), angles)
        out = torch.cat([out[..., :start], numbers.real, numbers.imag, out[..., start + 2 * pairs :]], -1)
    return out


FORMULAS = {
    "gla": gla,
    "retnet": retnet,
    "ssd": ssd,
    "hgrn": hgrn,
    "softmax": softmax,
    "inline": inline,
    "normalized": normalized,
    "zeros": zeros,
}
