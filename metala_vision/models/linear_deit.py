"""DeiT with its attention replaced, as the papers of InLine and ZeroS train it: class token, positions, biases, MLP."""

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from metala_vision.layers.mixers import ZeroS
from metala_vision.layers.mixers.inline import LocalResidual, injective_attention

from .masks import refuse_mask


class InLineAttention(nn.Module):
    """InLine attention over the class token and the patches of a DeiT (arXiv 2412.06590).

    The class token takes part in the attention, and in the mean that the weights of the residual are made from; the
    residual itself is on the patches alone.

    Attributes:
        grid: rows and columns of the patches, set by the model.

    Args:
        dim: channels C of a token.
        num_heads: heads H.
        qkv_bias: whether queries, keys and values have a bias.
        proj_bias: whether the last projection has one.
        proj_drop: dropout of the output.
        others: what timm hands to an attention and this one does not have.

    Raises:
        ValueError: one of `others` asks for something.
    """

    grid: tuple[int, int]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
        **others: Any,
    ):
        super().__init__()
        _refuse(others)
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.grid = (0, 0)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.residual = LocalResidual(dim, num_heads, **dd)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, 1 + N, C] -> [B, 1 + N, C]; there is no mask of tokens."""
        refuse_mask(attn_mask, is_causal)
        rows, cols = self.grid
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        o = injective_attention(q, k, v, 1.0 + rows * cols).flatten(2)
        patches = self.residual(v[:, 1:].flatten(2), x.mean(1), (rows, cols))
        return self.proj_drop(self.proj(torch.cat([o[:, :1], o[:, 1:] + patches], 1)))


class ZeroSAttention(ZeroS):
    """ZeroS over the class token and the patches of a DeiT (arXiv 2602.05230), whose positions are in the tokens.

    The arguments are those that timm hands to an attention; biases, which ZeroS does not have, are ignored.
    """

    grid: tuple[int, int]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
        **others: Any,
    ):
        _refuse(others)
        super().__init__(
            dim, num_heads, local_conv=False, proj_drop=proj_drop, rotary=False, device=device, dtype=dtype
        )
        self.grid = (0, 0)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:  # type: ignore[override]
        """[B, 1 + N, C] -> [B, 1 + N, C]; there is no mask of tokens."""
        refuse_mask(attn_mask, is_causal)
        return self.mix(x, (1, 1 + self.grid[0] * self.grid[1]))


class LinearDeiT(VisionTransformer):
    """timm's VisionTransformer with a linear attention that is told the grid of the patches.

    Images have the size that the model is made for; `set_input_size` changes it.

    Args:
        attn_layer: `InLineAttention` or `ZeroSAttention`.
        arguments: those of `VisionTransformer`.

    Raises:
        ValueError: `dynamic_img_size`, registers, no class token, or patches that are dropped.
    """

    def __init__(self, attn_layer: type[nn.Module] = InLineAttention, **arguments: Any):
        expected = dict(dynamic_img_size=False, reg_tokens=0, class_token=True, patch_drop_rate=0.0)
        for name, value in expected.items():
            if arguments.get(name, value) != value:
                raise ValueError(f"{name}: got {arguments[name]!r}, expected {value!r}: this model has no other form")
        super().__init__(attn_layer=attn_layer, **arguments)
        self._set_grid_of_blocks()

    def set_input_size(
        self, img_size: tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None
    ) -> None:
        """Changes the size of the images, or of the patches, and resamples what depends on it."""
        super().set_input_size(img_size, patch_size)
        self._set_grid_of_blocks()

    @torch.jit.ignore
    def _set_grid_of_blocks(self) -> None:
        block: Any
        for block in self.blocks:
            block.attn.grid = self.patch_embed.grid_size


def _refuse(others: dict[str, Any]) -> None:
    asked = {key: value for key, value in others.items() if value and key not in ("norm_layer", "depth")}
    if asked:
        raise ValueError(f"{', '.join(asked)}: got {asked}, which this attention does not have")


def _create(variant: str, pretrained: bool, attn_layer: type[nn.Module], **arguments: Any) -> LinearDeiT:
    return build_model_with_cfg(
        LinearDeiT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=arguments.pop("out_indices", 3), feature_cls="getter"),
        attn_layer=attn_layer,
        **arguments,
    )


def _cfg(size: int, paper: str) -> dict:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": paper,
    }


default_cfgs = generate_default_cfgs(
    {
        "inline_deit_tiny_patch16_224": _cfg(224, "arXiv:2412.06590"),
        "inline_deit_small_patch16_288": _cfg(288, "arXiv:2412.06590"),
        "inline_deit_base_patch16_448": _cfg(448, "arXiv:2412.06590"),
        "zeros_deit_tiny_patch16_224": _cfg(224, "arXiv:2602.05230"),
    }
)


@register_model
def inline_deit_tiny_patch16_224(pretrained: bool = False, **kwargs) -> LinearDeiT:
    """InLine-DeiT-T, 6.5 M parameters; 74.5 percent on ImageNet-1k by its paper."""
    args = dict(img_size=224, patch_size=16, embed_dim=192, depth=12, num_heads=6)
    return _create("inline_deit_tiny_patch16_224", pretrained, InLineAttention, **dict(args, **kwargs))


@register_model
def inline_deit_small_patch16_288(pretrained: bool = False, **kwargs) -> LinearDeiT:
    """InLine-DeiT-S, 16.7 M parameters: what is saved goes into pixels; 80.2 percent on ImageNet-1k by its paper."""
    args = dict(img_size=288, patch_size=16, embed_dim=320, depth=12, num_heads=10)
    return _create("inline_deit_small_patch16_288", pretrained, InLineAttention, **dict(args, **kwargs))


@register_model
def inline_deit_base_patch16_448(pretrained: bool = False, **kwargs) -> LinearDeiT:
    """InLine-DeiT-B, 23.8 M parameters; 82.3 percent on ImageNet-1k by its paper."""
    args = dict(img_size=448, patch_size=16, embed_dim=384, depth=12, num_heads=12)
    return _create("inline_deit_base_patch16_448", pretrained, InLineAttention, **dict(args, **kwargs))


@register_model
def zeros_deit_tiny_patch16_224(pretrained: bool = False, **kwargs) -> LinearDeiT:
    """DeiT-T with ZeroS, 6.2 M parameters; 75.51 percent on ImageNet-1k by its paper."""
    args = dict(img_size=224, patch_size=16, embed_dim=192, depth=12, num_heads=3)
    return _create("zeros_deit_tiny_patch16_224", pretrained, ZeroSAttention, **dict(args, **kwargs))
