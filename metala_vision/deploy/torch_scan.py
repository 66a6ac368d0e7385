"""Gated linear attention for graphs of PyTorch: few, large products, and as many operators for any number of tokens.

The tokens are cut into chunks of T. Within a chunk the decay between two tokens is exp(sum up to the one) over exp(sum
up to the other), so that a scan is a masked product, as in `kernels.chunked`; with sums counted from the middle of a
chunk no exponent reaches what float32 cannot hold, even at the floor of the gate. The states that enter the chunks come
from two levels of masked products: over the R chunks of a group, and over the D groups. `kernels.chunked` has as many
levels as the tokens at hand ask for, which a graph would keep as they were when it was traced.

Every exponent is a sum of its own terms, by a product with a matrix of zeros and ones: the difference of two long sums
would keep few digits of a short one.

Sizes may be open. The numbers of chunks and groups are then symbols of their own, which torch cannot take apart: with
rows and columns in each index a compiler needs minutes for a block, and where a size has an example, torch takes a one
in it for a constant. For the same reason tokens are taken by their places, not by slices, whose ends torch would
compare.

Shapes: B batch, N tokens, H heads, M chunks, T tokens of a chunk, K key and V value channels of a head, D groups of R
chunks.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# T / 2 tokens at the floor decay by exp(-80), and float32 ends at exp(-87). Shorter chunks are more, smaller products.
CHUNK = 32
GROUP = 16  # R


class Sequence:
    """The tokens of a grid in the sequence of a scan order, in chunks.

    Args:
        rows: of the grid.
        cols: likewise.
        order: of `kernels.SCAN_ORDERS`.
        device: of the tokens.
    """

    def __init__(self, rows: int, cols: int, order: str, device: torch.device):
        tokens = rows * cols
        self.chunks = size_of_its_own((tokens + CHUNK - 1) // CHUNK)
        # The last token is repeated, which changes nothing that is kept.
        places = torch.arange(self.chunks * CHUNK, device=device).clamp(max=tokens - 1)
        inverse = torch.arange(tokens, device=device)
        by_columns = order.startswith("column")
        if by_columns:
            inverse = inverse % cols * rows + inverse // cols
        if order.endswith("_reverse"):
            places, inverse = tokens - 1 - places, tokens - 1 - inverse
        self.places = places % rows * cols + places // rows if by_columns else places
        self.inverse = inverse

    def split(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, M, T, C]."""
        return x[:, self.places].reshape(x.shape[0], self.chunks, CHUNK, x.shape[2])

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `split`."""
        return x.reshape(x.shape[0], self.chunks * CHUNK, x.shape[3])[:, self.inverse]


def size_of_its_own(size: int) -> int:
    """A size, which is at least one, as a symbol of its own where it depends on what is open."""
    if isinstance(size, int):
        return size
    own: Any = torch.scalar_tensor(size, dtype=torch.int64).item()
    torch._check(own >= 1)
    return own


def scan_in_graph(
    q: Tensor, log_decay: Tensor, v: Tensor, k: Tensor, grid: tuple[int, int], scan: tuple[str, ...], scale: float
) -> Tensor:
    """`kernels.reference.recurrence` in a graph: the same arguments, all of one dtype, and the same [B, N, H, V]."""
    own = (q * k).sum(-1, keepdim=True) * v
    found: Tensor | None = None
    for order in scan:
        sequence = Sequence(*grid, order, q.device)
        parts = (heads_first(sequence.split(x.flatten(2)), x.shape[2]) for x in (q, log_decay, k, v))
        out = sequence.join(chunked_scan(*parts).permute(0, 2, 3, 1, 4).flatten(3)).unflatten(2, v.shape[2:])
        found = out if found is None else found + out - own
    assert found is not None  # a scan has an order
    return scale * found


def heads_first(x: Tensor, num_heads: int) -> Tensor:
    """[B, M, T, H X] -> [B, H, M, T, X]."""
    return x.unflatten(3, (num_heads, -1)).permute(0, 3, 1, 2, 4)


def chunked_scan(q: Tensor, g: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One scan over chunks in their sequence, [B, H, M, T, K or V] -> [B, H, M, T, V]; g is the log-decay."""
    sums = product(_from_middle(g), g)  # [B, H, M, T + 2, K]
    decay, halves = sums[..., :CHUNK, :].exp(), sums[..., CHUNK:, :]
    left, later = halves[..., :1, :].exp(), halves[..., 1:, :].exp()
    q, k = q * decay, k / decay
    across = k.transpose(-1, -2)
    scores = product(q, across).tril()
    # Never the product of both: exp(-160) is zero in float32, whatever it is multiplied by afterwards.
    update = product(across, v) * later.transpose(-1, -2)
    return product(scores, v) + product(q * left, _states(halves.sum(3), update))


def _states(total: Tensor, update: Tensor) -> Tensor:
    """The state that enters each chunk.

    Args:
        total: log-decay of a chunk [B, H, M, K].
        update: what a chunk adds to the state that leaves it [B, H, M, K, V].

    Returns:
        [B, H, M, K, V].
    """
    chunks = update.shape[2]
    groups = size_of_its_own((chunks + GROUP - 1) // GROUP)
    padding = groups * GROUP - chunks
    batch, heads, _, key_dim, value_dim = update.shape
    total = F.pad(total, (0, 0, 0, padding)).reshape(batch, heads, groups, GROUP, key_dim)
    update = F.pad(update, (0, 0, 0, 0, 0, padding)).reshape(batch, heads, groups, GROUP, key_dim, value_dim)
    # Chunks of a group: what is left, where place c begins, of what chunk j has added; at c = R the group ends.
    before = torch.ones(GROUP + 1, GROUP, dtype=total.dtype, device=total.device).tril(-1)
    between = (before.unsqueeze(1) * before[:GROUP].T).reshape(-1, GROUP)  # [(R + 1) R, R]
    decay = product(between, total).unflatten(3, (GROUP + 1, GROUP)).exp() * before.unsqueeze(-1)
    within = product(decay.permute(0, 1, 2, 5, 3, 4), update.transpose(3, 4))  # [B, H, D, K, R + 1, V]
    reached = product(before, total)  # [B, H, D, R + 1, K]
    entering = _groups(reached[..., GROUP, :], within[..., GROUP, :])
    found = within[..., :GROUP, :].transpose(3, 4) + reached[..., :GROUP, :].exp().unsqueeze(-1) * entering.unsqueeze(3)
    places = torch.arange(chunks, device=total.device)
    return found.reshape(batch, heads, groups * GROUP, key_dim, value_dim)[:, :, places]


def _groups(total: Tensor, update: Tensor) -> Tensor:
    """The state that enters each group: log-decays [B, H, D, K] and updates [B, H, D, K, V] -> [B, H, D, K, V]."""
    groups = update.shape[2]
    # One more, so that there are never less than two: a compiler has another layout for products with a side of one.
    place = torch.arange(groups + 1, device=total.device)
    apart = place.unsqueeze(-1) - place  # [D + 1, D + 1]
    former = F.pad(total, (0, 0, 1, 0)).transpose(2, 3).unsqueeze(-1)  # of the group before, [B, H, K, D + 1, 1]
    decay = torch.where(apart > 1, former, 0.0).cumsum(3)
    decay = torch.where(apart > 0, decay.exp(), 0.0)
    found = product(decay, F.pad(update.transpose(2, 3), (0, 0, 0, 1)))
    return found[..., :groups, :].transpose(2, 3)


def product(x: Tensor, y: Tensor) -> Tensor:
    """x @ y of matrices with the same leading axes, or of one matrix x; torch.matmul would ask which of them are 1."""
    if x.dim() == 2:
        x = x.expand(*y.shape[:-2], -1, -1)
    found = torch.bmm(x.reshape(-1, *x.shape[-2:]), y.reshape(-1, *y.shape[-2:]))
    return found.reshape(*y.shape[:-2], *found.shape[-2:])


def _from_middle(g: Tensor) -> Tensor:
    """[T + 2, T]: sums from the middle of a chunk up to each token, up to the middle, and from there to the end."""
    upto = torch.ones(CHUNK, CHUNK, dtype=g.dtype, device=g.device).tril()
    middle = upto[CHUNK // 2 - 1 : CHUNK // 2]
    return torch.cat([upto - middle, middle, 1 - middle])
