"""How far the heads of scans remember, and what part of an image the feature of a token depends on."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metala_vision.errors import InputError
from metala_vision.kernels.reference import GATE_FLOOR

from .maps import blocks_of, mixer_inputs, token_at


@torch.no_grad()
def half_lives(model: nn.Module, image: Tensor) -> list[dict]:
    """After how many tokens the decay of each head has halved a memory, on an image [1, chans, height, width].

    Returns:
        A row for each head of each block that scans: `block`, `mixer`, `head`, `orders`, `tokens` (the median over
        tokens and channels of the head), `low` and `high` (the 10th and the 90th of a hundred), `pixels` (of the
        median, along the scan), `of` (tokens of the image) and `share` (of them). A decay of one never halves: its
        half-life is infinite.
    """
    blocks = blocks_of(model)
    scanning = [i for i, block in enumerate(blocks) if hasattr(block.mixer, "choose")]
    inputs = mixer_inputs(model, image, scanning)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))[0]
    rows = []
    for i in scanning:
        mixer: Any = blocks[i].mixer
        x, grid = inputs[i]
        log_decay = mixer.choose(x, grid)[1].float().clamp(GATE_FLOOR, 0.0)
        lives = math.log(2) / log_decay[0].abs()  # [N, heads of the operator, K]
        by_head = lives.transpose(0, 1).reshape(mixer.num_heads, -1)
        for head, some in enumerate(by_head):
            low, middle, high = (_quantile(some, share) for share in (0.1, 0.5, 0.9))
            rows.append(
                dict(
                    block=i,
                    mixer=type(mixer).__name__,
                    head=head,
                    orders=list(mixer.scan),
                    tokens=middle,
                    low=low,
                    high=high,
                    pixels=middle * patch,
                    of=grid[0] * grid[1],
                    share=middle / (grid[0] * grid[1]),
                )
            )
    return rows


def _quantile(values: Tensor, share: float) -> float:
    """torch.quantile takes no more than 16 million values."""
    return values.flatten().kthvalue(1 + round(share * (values.numel() - 1))).values.item()


def receptive_field(model: Any, images: Tensor, place: tuple[float, float]) -> Tensor:
    """How much the last feature of a token changes with each pixel: the mean of |gradients|, [height, width].

    Args:
        model: of timm's surface, with `forward_intermediates`.
        images: [B, chans, height, width], normalised.
        place: of the token, as shares of height and width.

    Raises:
        InputError: a model that does not give its last map.
    """
    if not hasattr(model, "forward_intermediates"):
        raise InputError(f"{type(model).__name__}: it has no forward_intermediates, which gives the last map")
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        # Before the last norm: behind it the channels of a token add up to a constant.
        (last,) = model.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)
        token = last.flatten(2)[:, :, token_at(place, (last.shape[2], last.shape[3]))]
        gradient = torch.autograd.grad(token.sum(), images)[0]
    return gradient.abs().sum(1).mean(0)


def reach(field: Tensor, shares: Sequence[float] = (0.5, 0.9)) -> dict[str, float]:
    """The smallest part of the pixels that has a share of a receptive field: near 1 where all count the same."""
    ordered = field.flatten().sort(descending=True).values.double()
    running = ordered.cumsum(0) / ordered.sum()
    return {f"{share:g}": ((running < share).sum().item() + 1) / len(ordered) for share in shares}
