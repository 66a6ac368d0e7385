"""MetaLA-ViT: an isotropic vision backbone on meta linear attention.

The token mixer is that of MetaLA (arXiv 2411.10741), brought to images by scans along rows and columns; the paper's own
image model was not released. Time is linear in the number of tokens. Any height and width will do: by default there is
no position embedding to resize.
"""

from typing import Any, Literal

import torch
from timm.layers import calculate_drop_path_rates, global_pool_nlc
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from timm.models._manipulate import named_apply
from torch import Tensor, nn

from metala_vision.layers import MetaLABlock, PatchEmbed
from metala_vision.layers.decay import DECAY_SCALES
from metala_vision.layers.mixers.registry import check_settings, mixers_of_blocks
from metala_vision.layers.pos_embed import resampled

from .init import init_module
from .nominal_grid import HasNominalGrid
from .scans import orders_of_blocks

__all__ = ["MetaLAViT"]

POOLS = ("", "avg", "max", "avgmax")
torch.fx.wrap("resampled")  # it compares sizes, which FX does not know while it traces


class MetaLAViT(HasNominalGrid):
    """MetaLA-ViT with timm's model surface.

    Args:
        img_size: nominal input size; any other height and width works too, sides are padded to the patch size.
        patch_size: side of a patch.
        in_chans: channels of the image.
        num_classes: classes of the head; 0 is no head.
        global_pool: "avg", "max", "avgmax" or "" (tokens).
        embed_dim: channels of a token; `2 * num_heads` divides it.
        depth: number of blocks.
        num_heads: heads of the mixer.
        mlp_ratio: hidden channels of the SwiGLU over `embed_dim`.
        mixer: the token mixer, a name out of `metala_vision.layers.MIXERS`; or several, which the blocks take in turns:
            ("metala", "metala", "softmax") has softmax attention in every third.
        scan: "cycle" (one order a block, the four in turns), "alternate" (rows both ways in even blocks, columns in
            odd ones), "cross" (all four orders in every block), "row" (rows both ways) or "causal" (one order and a
            causal convolution: the paper's 1-D layer); or a tuple, the orders of every block, such as
            ("row", "column"), as `gated_linear_attention` takes them.
        local_conv: False leaves the convolutions of the mixers out.
        self_aug: False leaves the self-augmentation of the mixers out.
        decay_bias: False leaves out the bias of the decay, which spreads the memories of a head's channels, see
            `metala_vision.layers.decay`. Older weights lack it, and load with zeros in its place.
        mlp_conv: True puts a depthwise 3x3 convolution into the gate of the SwiGLU, see `metala_vision.layers.SwiGLU`.
        decay_scale: "grid", so that scans remember the same share of an image of any size, see
            `metala_vision.layers.decay`; "none", so that they remember as many tokens on every image. The grid of the
            training is that of `img_size`; it is saved with the weights as the buffer `nominal_grid`. Older
            weights lack this buffer, and their scans remember as many tokens on every image.
        pos_embed: "none", or "learn" for a learned embedding added to the patches, resampled at other sizes.
        drop_rate: dropout before the head.
        proj_drop_rate: dropout after the projections of mixer and SwiGLU.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0.

    Raises:
        ValueError: `mixer`, `scan`, `decay_scale`, `pos_embed`, `global_pool` or `num_heads` that do not fit; one of
            `scan`, `local_conv`, `self_aug` and `decay_bias` that is not its default and that no mixer has.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Literal["", "avg", "max", "avgmax"] = "avg",
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 3.0,
        mixer: str | tuple[str, ...] | list[str] = "metala",
        scan: str | tuple[str, ...] | list[str] = "cycle",
        local_conv: bool = True,
        self_aug: bool = True,
        decay_bias: bool = True,
        mlp_conv: bool = False,
        decay_scale: Literal["grid", "none"] = "grid",
        pos_embed: Literal["none", "learn"] = "none",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        orders, mixers = orders_of_blocks(scan, depth), mixers_of_blocks(mixer, depth)
        causal = scan == "causal"
        check_settings(mixers, causal, scan=scan, local_conv=local_conv, self_aug=self_aug, decay_bias=decay_bias)
        if decay_scale not in DECAY_SCALES:
            raise ValueError(f"decay_scale: got {decay_scale!r}, expected one of {DECAY_SCALES}")
        if pos_embed not in ("none", "learn"):
            raise ValueError(f"pos_embed: got {pos_embed!r}, expected 'none' or 'learn'")
        _check_pool(global_pool)
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool: str = global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        # What clients of timm's ViT ask for: there is no token but those of the patches, and any size is taken.
        self.num_prefix_tokens = self.num_reg_tokens = 0
        self.has_class_token = False
        self.cls_token = self.reg_token = self.attn_pool = None
        self.no_embed_class = True
        self.dynamic_img_size = True
        self.grad_checkpointing = False
        self.decay_scale = decay_scale

        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim, **dd)
        self.pos_embed: nn.Parameter | None = None
        self.pos_grid = self.patch_embed.grid_size
        self.register_buffer("nominal_grid", torch.tensor(self.pos_grid, device=device))
        if pos_embed == "learn":
            self.pos_embed = nn.Parameter(torch.empty(1, self.pos_grid[0] * self.pos_grid[1], embed_dim, **dd))
        self.pos_drop = nn.Identity()
        self.patch_drop = nn.Identity()
        self.norm_pre = nn.Identity()
        rates = calculate_drop_path_rates(drop_path_rate, depth)
        blocks = [
            MetaLABlock(
                embed_dim,
                num_heads,
                mlp_ratio,
                scan=orders[i],
                causal=causal,
                local_conv=local_conv,
                self_aug=self_aug,
                decay_bias=decay_bias,
                mlp_conv=mlp_conv,
                proj_drop=proj_drop_rate,
                drop_path=rates[i],
                mixer=mixers[i],
                **dd,
            )
            for i in range(depth)
        ]
        self.blocks = nn.Sequential(*blocks)
        if decay_scale != "grid" and not any(hasattr(block.mixer, "nominal_grid") for block in blocks):
            raise ValueError(
                f"decay_scale: got {decay_scale!r}, but none of the mixers {tuple(set(mixers))} has a decay"
            )
        self._set_grid_of_blocks()
        reduction = self.patch_embed.feat_ratio()
        self.feature_info = [dict(module=f"blocks.{i}", num_chs=embed_dim, reduction=reduction) for i in range(depth)]
        self.norm: nn.Module = nn.LayerNorm(embed_dim, eps=1e-6, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initialises every parameter, also after `to_empty()`."""
        self._set_nominal_grid(self.pos_grid)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        named_apply(init_module, self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names without decay, beside the one-dimensional ones (norms, biases, self-augmentation) that timm exempts."""
        return {"pos_embed"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups for layer-wise rate decay."""
        return dict(stem=r"^patch_embed|^pos_embed", blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes` (0 for none), and a new pooling if one is given."""
        reference = self.patch_embed.proj.weight
        if global_pool is not None:
            _check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.embed_dim, num_classes, device=reference.device, dtype=reference.dtype)
            init_module(self.head)
        self.head.train(self.training)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Changes the nominal input size, or the patch size by resampling the patch embedding.

        The new size counts as the size of the training: on its grid the decay is not scaled, see `decay_scale`.
        """
        self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        former, self.pos_grid = self.pos_grid, self.patch_embed.grid_size
        self._set_grid_of_blocks()
        self._set_nominal_grid(self.pos_grid)
        if self.pos_embed is not None:
            self.pos_embed = nn.Parameter(resampled(self.pos_embed.detach(), former, self.pos_grid))
        reduction = self.patch_embed.feat_ratio()
        for info in self.feature_info:
            info["reduction"] = reduction
        update_model_input_size(self, self.patch_embed.img_size, patch_size=patch_size)

    @torch.jit.ignore
    def _set_grid_of_blocks(self) -> None:
        for block in self.blocks:
            block.grid = self.pos_grid

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patches [B, rows, cols, C] -> tokens [B, N, C], with the position embedding where there is one."""
        batch, rows, cols, dim = x.shape
        # The projection leaves channels first in memory: contiguous once here, not in every norm of every block.
        x = x.reshape(batch, rows * cols, dim).contiguous()
        if self.pos_embed is not None:
            x = x + resampled(self.pos_embed, self.pos_grid, (rows, cols))
        return self.pos_drop(x)

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Image [B, in_chans, height, width] -> tokens [B, N, C] and their grid."""
        x = self.patch_embed(x)
        rows, cols = x.shape[1], x.shape[2]
        return self.norm_pre(self.patch_drop(self._pos_embed(x))), (rows, cols)

    def forward_features(self, x: Tensor) -> Tensor:
        """Image [B, in_chans, height, width] -> normalised tokens [B, N, C]."""
        x, grid = self._embed(x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, grid)
            else:
                x = block(x, grid)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, N, C] -> logits [B, num_classes], or the pooled features with `pre_logits`."""
        x = global_pool_nlc(x, self.global_pool, num_prefix_tokens=0)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Image [B, in_chans, height, width] -> logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Outputs of intermediate blocks.

        Args:
            x: [B, in_chans, height, width].
            indices: an int for the last n blocks, None for all blocks, or the indices of blocks.
            return_prefix_tokens: pair each output with its prefix tokens, [B, 0, C]: there are none.
            norm: apply the final norm to each.
            stop_early: run no block after the last one asked for.
            output_fmt: "NCHW" or "NLC".
            intermediates_only: leave out the final features.

        Returns:
            The intermediates, or (final features [B, N, C], intermediates).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt: got {output_fmt!r}, expected 'NCHW' or 'NLC'")
        take, last = feature_take_indices(len(self.blocks), indices)
        x, grid = self._embed(x)
        blocks = self.blocks if torch.jit.is_scripting() or not stop_early else self.blocks[: last + 1]
        intermediates: list[Tensor] = []
        for i, block in enumerate(blocks):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, grid)
            else:
                x = block(x, grid)
            if i in take:
                intermediates.append(self.norm(x) if norm else x)
        if output_fmt == "NCHW":
            intermediates = [
                y.reshape(y.shape[0], grid[0], grid[1], -1).permute(0, 3, 1, 2).contiguous() for y in intermediates
            ]
        if not torch.jit.is_scripting() and return_prefix_tokens:
            pairs: Any = [(y, x[:, :0]) for y in intermediates]
            return pairs if intermediates_only else (self.norm(x), pairs)
        if intermediates_only:
            return intermediates
        return self.norm(x), intermediates

    @torch.jit.ignore
    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | list[int] | tuple[int, ...] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Tensor]:
        """`forward_intermediates` as DINO has it, of the last n blocks or those in n; NCHW with `reshape`, else NLC."""
        found: Any = self.forward_intermediates(
            x,
            n if isinstance(n, int) else list(n),
            return_prefix_tokens=return_prefix_tokens,
            norm=norm,
            output_fmt="NCHW" if reshape else "NLC",
            intermediates_only=True,
        )
        return found

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops what `forward_intermediates(indices)` does not need; returns the indices of the blocks it takes."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take


def _check_pool(global_pool: str) -> None:
    if global_pool not in POOLS:
        raise ValueError(f"global_pool: got {global_pool!r}, expected one of {POOLS}")
