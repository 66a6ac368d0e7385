"""The implicit attention map of any token mixer, row by row: never N x N numbers unless N queries are asked for.

A mixer mixes values linearly, see `TokenMixer.map_of_values`. The row of a query is the gradient of its output with
respect to the values: one forward pass of the operator for all queries of a block, and one backward pass for each.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metala_vision.errors import InputError


class BlockMap(NamedTuple):
    """What the queries of a block look at."""

    block: int
    mixer: str  # its class
    orders: tuple[str, ...]  # its scan orders; empty where it has none
    grid: tuple[int, int]
    rows: Tensor  # [queries, H, N], float32: signed weights


def blocks_of(model: nn.Module) -> list[Any]:
    """The blocks of a model whose mixers have a map.

    Raises:
        InputError: it has none.
    """
    blocks: Any = getattr(model, "blocks", None)
    if blocks is None or not all(hasattr(getattr(block, "mixer", None), "map_of_values") for block in blocks):
        raise InputError(
            f"{type(model).__name__}: its blocks have no mixer with a map; expected a metala_vit_* model, such as"
            f" metala_vit_tiny:mixer=softmax"
        )
    return list(blocks)


def mixer_inputs(model: nn.Module, image: Tensor, blocks: Sequence[int]) -> dict[int, tuple[Tensor, tuple[int, int]]]:
    """The tokens [1, N, C] that the mixers of some blocks get for an image [1, chans, height, width], with their grid.

    It watches the mixers themselves: a block then runs them one by one and not as one operator.
    """
    found: dict[int, tuple[Tensor, tuple[int, int]]] = {}

    def keep(index: int):
        def hook(module: nn.Module, arguments: tuple) -> None:
            found[index] = (arguments[0].detach(), arguments[1])

        return hook

    all_blocks = blocks_of(model)
    handles = [all_blocks[i].mixer.register_forward_pre_hook(keep(i)) for i in blocks]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return found


def attention_rows(
    model: nn.Module, image: Tensor, blocks: Sequence[int], queries: Sequence[tuple[float, float]]
) -> list[BlockMap]:
    """The map of each block for chosen queries.

    Args:
        model: a model whose mixers have a map.
        image: [1, chans, height, width], normalised.
        blocks: indices of blocks; negative ones count from the last.
        queries: places as shares of height and width, in [0, 1].

    Returns:
        A `BlockMap` for each block. Where a mixer weighs the channels of a head each by itself, as InLine's residual
        and HGRN do, a row is the mean over them.

    Raises:
        InputError: a model without maps, a block or a place that is not there.
    """
    all_blocks = blocks_of(model)
    depth = len(all_blocks)
    if bad := [i for i in blocks if not -depth <= i < depth]:
        raise InputError(f"--block: got {bad[0]}, expected {-depth} to {depth - 1}: the model has {depth} blocks")
    if wrong := [q for q in queries if not (0 <= q[0] <= 1 and 0 <= q[1] <= 1)]:
        raise InputError(f"--query: got {wrong[0][0]:g},{wrong[0][1]:g}, expected shares of height and width, 0 to 1")
    blocks = [i % depth for i in blocks]
    inputs = mixer_inputs(model, image, blocks)
    found = []
    for i in blocks:
        x, grid = inputs[i]
        mixer = all_blocks[i].mixer
        places = [token_at(query, grid) for query in queries]
        rows = torch.stack(rows_of(mixer, x, grid, places)).float()
        found.append(BlockMap(i, type(mixer).__name__, getattr(mixer, "scan", ()), grid, rows))
    return found


def rows_of(mixer: Any, x: Tensor, grid: tuple[int, int], tokens: Sequence[int]) -> list[Tensor]:
    """The rows [H, N] of the map of a mixer for the tokens [1, N, C] of one image."""
    with torch.no_grad():
        v, mixed = mixer.map_of_values(x, grid)
    with torch.enable_grad():
        probe = torch.zeros_like(v[..., :1]).requires_grad_()  # one value for all channels of a head
        out = mixed(probe.expand(v.shape)).mean(-1)  # [1, N, heads of the operator]
        rows = [torch.autograd.grad(out[0, token].sum(), probe, retain_graph=True)[0] for token in tokens]
    # HGRN has a head for each channel; together they are as many as those of its norm
    return [row[0, :, :, 0].T.reshape(mixer.num_heads, -1, row.shape[1]).mean(1) for row in rows]


def token_at(place: tuple[float, float], grid: tuple[int, int]) -> int:
    """Index of the token under a place, given as shares of height and width."""
    row, col = (min(int(share * side), side - 1) for share, side in zip(place, grid))
    return row * grid[1] + col
