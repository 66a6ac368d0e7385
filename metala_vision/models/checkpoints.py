"""Checkpoints of other sizes."""

from typing import Protocol

from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from metala_vision.layers import PatchEmbed


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
        # The grid of the checkpoint is taken to be square.
        pos_embed = resample_abs_pos_embed(state_dict["pos_embed"], list(model.pos_grid), num_prefix_tokens=0)
        state_dict = {**state_dict, "pos_embed": pos_embed}
    return state_dict
