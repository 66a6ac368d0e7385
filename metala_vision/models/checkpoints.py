"""Checkpoints of other sizes, and older ones."""

import math
from typing import Protocol

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from metala_vision.errors import InputError
from metala_vision.layers import PatchEmbed

# What older checkpoints of the models do not have, and what the models take as zeros then.
ADDED_LATER = ("nominal_grid", "mixer.decay_bias")


def fill_older(weights: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Gives a whole checkpoint the tensors that it lacks since it is an older one, in place; returns their names.

    They are zeros, with which a model gives the numbers that it gave, see `HasNominalGrid` and `MetaLA`. The names in
    `weights` must be those of the `state_dict` of `model`, which may be more than a backbone.
    """
    expected = model.state_dict()
    names = [name for name in expected if name not in weights and name.endswith(ADDED_LATER)]
    weights.update({name: torch.zeros_like(expected[name], device="cpu") for name in names})
    return names


class OfSomeSize(Protocol):
    """What `checkpoint_filter_fn` needs of a model."""

    patch_embed: PatchEmbed
    pos_embed: Tensor | None
    pos_grid: tuple[int, int]


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: OfSomeSize) -> dict[str, Tensor]:
    """Resamples a checkpoint's patch embedding to the model's patch size, the position embedding to its grid."""
    key = "patch_embed.proj.weight"
    if key in state_dict:
        size = model.patch_embed.proj.weight.shape[-2:]
        state_dict = {**state_dict, key: resample_patch_embed(state_dict[key], list(size))}
    if model.pos_embed is not None and "pos_embed" in state_dict:
        pos_embed = resample_abs_pos_embed(
            state_dict["pos_embed"],
            list(model.pos_grid),
            old_size=_pos_grid(state_dict),
            num_prefix_tokens=0,
        )
        state_dict = {**state_dict, "pos_embed": pos_embed}
    return state_dict


def _pos_grid(state_dict: dict[str, Tensor]) -> list[int]:
    """The grid of a checkpoint's position embedding: the one it was trained on, or a square one where it names none.

    Raises:
        InputError: it names none that has as many tokens, and no square has.
    """
    tokens = state_dict["pos_embed"].shape[1]
    grid = state_dict.get("nominal_grid")
    if grid is not None and not grid.is_meta and int(grid.prod()) == tokens:
        return grid.tolist()
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise InputError(
            f"checkpoint: its position embedding has {tokens} tokens, which are no square, and it names no grid; give "
            f"it a tensor 'nominal_grid' with rows and columns"
        )
    return [side, side]
