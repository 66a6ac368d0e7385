"""Checkpoints of other sizes."""

from typing import Protocol

from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from metala_vision.layers import PatchEmbed


class OfSomeSize(Protocol):
    """What is asked of a model here."""

    patch_embed: PatchEmbed
    pos_embed: Tensor | None
    pos_grid: tuple[int, int]


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: OfSomeSize) -> dict[str, Tensor]:
    """Resamples the patch embedding of a checkpoint to the patch size of the model, position embeddings to its grid."""
    key = "patch_embed.proj.weight"
    if key in state_dict:
        size = model.patch_embed.proj.weight.shape[-2:]
        state_dict = {**state_dict, key: resample_patch_embed(state_dict[key], list(size))}
    if model.pos_embed is not None and "pos_embed" in state_dict:
        # Of a square image: a checkpoint does not say.
        pos_embed = resample_abs_pos_embed(state_dict["pos_embed"], list(model.pos_grid), num_prefix_tokens=0)
        state_dict = {**state_dict, "pos_embed": pos_embed}
    return state_dict
