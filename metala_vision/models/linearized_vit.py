"""A pretrained ViT of timm whose attention is linear in the number of patches, for images of any size."""

import copy
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.layers import Format
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from metala_vision.layers.decay import DECAY_SCALES
from metala_vision.layers.linearized import FORMS, LinearizedAttention, LinearizedBlock

from .masks import refuse_mask
from .nominal_grid import HasNominalGrid
from .scans import orders_of_blocks

__all__ = ["LinearizedViT"]


class LinearizedViT(HasNominalGrid, VisionTransformer):
    """timm's VisionTransformer with the weights of another one and linear attention between its patches.

    What is in `layers.linearized` takes the place of each attention; everything else, and every name of a weight, is
    the teacher's. Images of any height and width are taken: sides are padded to whole patches, and the position
    embedding is resampled.

    Args:
        teacher: name of a VisionTransformer of timm.
        mixer: the form of attention between patches, a name out of `metala_vision.layers.linearized.FORMS`.
        keep_softmax: indices of the blocks whose attention stays as it is; negative ones count from the last.
        states: states of each head.
        scan: for mixer="metala", as for `MetaLAViT`.
        decay_scale: for mixer="metala", as for `MetaLAViT`.
        arguments: those of the teacher: `img_size`, `num_classes`, `drop_path_rate`, ...

    Raises:
        ValueError: a teacher that is no plain VisionTransformer, an unknown form, an index that no block has.
    """

    if TYPE_CHECKING:  # timm's hints are not read, and TorchScript would read these
        patch_embed: Any
        blocks: Any
        norm: nn.Module
        norm_pre: nn.Module
        num_prefix_tokens: int

        def _pos_embed(self, x: Tensor) -> Tensor: ...

    def __init__(
        self,
        teacher: str = "vit_small_patch16_224",
        mixer: str = "metala",
        keep_softmax: tuple[int, ...] | list[int] = (),
        states: int = 64,
        scan: str | tuple[str, ...] | list[str] = "alternate",
        decay_scale: str = "grid",
        **arguments: Any,
    ):
        donor = timm.create_model(teacher, **arguments)
        nn.Module.__init__(self)
        self._take_over(donor, mixer, keep_softmax, states, scan, decay_scale)

    @classmethod
    def of(cls, teacher: VisionTransformer, **settings: Any) -> "LinearizedViT":
        """A linear model with a copy of a teacher's weights; `settings` are `mixer` to `decay_scale` of the class."""
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        given = dict(mixer="metala", keep_softmax=(), states=64, scan="alternate", decay_scale="grid") | settings
        model._take_over(copy.deepcopy(teacher), **given)
        return model

    @torch.jit.ignore
    def _take_over(
        self,
        donor: VisionTransformer,
        mixer: str,
        keep_softmax: tuple[int, ...] | list[int],
        states: int,
        scan: str | tuple[str, ...] | list[str],
        decay_scale: str,
    ) -> None:
        if type(donor) is not VisionTransformer:
            raise ValueError(f"teacher: got a {type(donor).__name__}, expected a VisionTransformer of timm")
        if mixer not in FORMS:
            raise ValueError(f"mixer: got {mixer!r}, expected one of {tuple(FORMS)}")
        if decay_scale not in DECAY_SCALES:
            raise ValueError(f"decay_scale: got {decay_scale!r}, expected one of {DECAY_SCALES}")
        if not isinstance(donor.patch_drop, nn.Identity):
            raise ValueError("patch_drop_rate: got one, expected 0: a linear attention needs the whole grid")
        depth = len(donor.blocks)
        kept = {index % depth for index in keep_softmax if -depth <= index < depth}
        if len(kept) != len(set(keep_softmax)):
            raise ValueError(f"keep_softmax: got {tuple(keep_softmax)}, expected indices of {depth} blocks, none twice")
        self.__dict__.update(donor.__dict__)
        self.dynamic_img_size = True
        embed = self.patch_embed
        embed.strict_img_size, embed.dynamic_img_pad, embed.flatten, embed.output_fmt = False, True, False, Format.NHWC
        self.mixer, self.keep_softmax, self.states, self.decay_scale = mixer, tuple(sorted(kept)), states, decay_scale
        orders = orders_of_blocks(scan, depth)
        self.blocks = nn.Sequential(
            *(
                LinearizedBlock(
                    block,
                    None
                    if i in kept
                    else LinearizedAttention(block.attn, self.num_prefix_tokens, mixer, states, orders[i]),
                )
                for i, block in enumerate(donor.blocks)
            )
        )
        self.register_buffer("nominal_grid", torch.tensor(self._own_grid(), device=embed.proj.weight.device))
        self._set_nominal_grid(self._own_grid())
        self._set_grid_of_blocks()

    @torch.jit.ignore
    def _own_grid(self) -> tuple[int, int]:
        """Of the patches of images of the nominal size, which are padded to whole ones."""
        rows, cols = self.patch_embed.dynamic_feat_size(self.patch_embed.img_size)
        return rows, cols

    @torch.jit.ignore
    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialises every parameter and buffer, also after `to_empty()`."""
        super().init_weights(mode, needs_reset)
        self._set_nominal_grid(self._own_grid())

    def set_input_size(
        self, img_size: tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None
    ) -> None:
        """Changes the nominal size of the images, or of the patches, and resamples what depends on it."""
        super().set_input_size(img_size, patch_size)
        self._set_grid_of_blocks()
        self._set_nominal_grid(self._own_grid())

    @torch.jit.ignore
    def _set_grid_of_blocks(self) -> None:
        for block in self.blocks:
            if block.is_linear:
                block.attn.grid = self._own_grid()

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Image [B, in_chans, height, width] -> tokens [B, P + N, C] and the grid of the patches."""
        x = self.patch_embed(x)
        rows, cols = x.shape[1], x.shape[2]
        return self.norm_pre(self._pos_embed(x)), (rows, cols)

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Image [B, in_chans, height, width] -> normalised tokens [B, P + N, C]; there is no mask of tokens."""
        refuse_mask(attn_mask, is_causal)
        x, grid = self._embed(x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, grid)
            else:
                x = block(x, grid)
        return self.norm(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Outputs of intermediate blocks, as those of timm's VisionTransformer; there is no mask of tokens."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt: got {output_fmt!r}, expected 'NCHW' or 'NLC'")
        refuse_mask(attn_mask, is_causal)
        take, last = feature_take_indices(len(self.blocks), indices)
        x, grid = self._embed(x)
        blocks = self.blocks if torch.jit.is_scripting() or not stop_early else self.blocks[: last + 1]
        found: list[Tensor] = []
        for i, block in enumerate(blocks):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, grid)
            else:
                x = block(x, grid)
            if i in take:
                found.append(self.norm(x) if norm else x)
        prefix = [y[:, : self.num_prefix_tokens] for y in found]
        found = [y[:, self.num_prefix_tokens :] for y in found]
        if output_fmt == "NCHW":
            found = [y.reshape(y.shape[0], grid[0], grid[1], -1).permute(0, 3, 1, 2).contiguous() for y in found]
        if output_dict:
            results: dict[str, Any] = {"image_intermediates": found}
            if return_prefix_tokens and self.num_prefix_tokens:
                results["image_intermediates_prefix"] = prefix
            if not intermediates_only:
                results["image_features"] = self.norm(x)
            return results
        pairs: Any = found
        if return_prefix_tokens and self.num_prefix_tokens:
            pairs = list(zip(found, prefix))
        return pairs if intermediates_only else (self.norm(x), pairs)


# Of a teacher's pretrained_cfg: what its images are like, and the names of its first and last layer.
OF_THE_TEACHER = ("num_classes", "input_size", "interpolation", "crop_pct", "mean", "std", "first_conv", "classifier")
default_cfgs = generate_default_cfgs(
    {"linearized_vit": {"url": "", "first_conv": "patch_embed.proj", "classifier": "head", "fixed_input_size": False}}
)


@register_model
def linearized_vit(pretrained: bool = False, teacher: str = "vit_small_patch16_224", **kwargs) -> LinearizedViT:
    """Any plain ViT of timm with linear attention; `teacher` is its name. See `LinearizedViT` for other arguments."""
    known = timm.get_pretrained_cfg(teacher)
    if known is None:
        raise ValueError(f"teacher: got {teacher!r}, which is no model of timm")
    if kwargs.get("pretrained_cfg") is None:  # weights of a folder or a hub have one of their own
        cfg = {key: value for key, value in known.to_dict().items() if key in OF_THE_TEACHER}
        kwargs["pretrained_cfg_overlay"] = cfg | (kwargs.get("pretrained_cfg_overlay") or {})
    return build_model_with_cfg(
        LinearizedViT,
        "linearized_vit",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter"),
        teacher=teacher,
        **kwargs,
    )
