"""Multiply-accumulates of whole architectures, derived by hand from their definitions, for one image.

They are independent of any tracer: they read nothing of a model but its dimensions, and give what counters must find.
"""

from typing import Any, NamedTuple

from timm.layers import Mlp, PatchEmbed
from timm.models.efficientvit_mit import EfficientVit, EfficientVitBlock
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.xcit import Xcit
from torch import nn

from metala_vision.models.metala_vit import MetaLAViT

from .mixers import of_mixer


class Formula(NamedTuple):
    """MACs of products (and scans), and what norms and pooling count for by fvcore's convention."""

    products: int
    others: int

    @property
    def macs(self) -> int:
        """Products and others together."""
        return self.products + self.others


def formula(model: nn.Module, size: tuple[int, int]) -> Formula | None:
    """The count of a model whose architecture is known here, for an image of `size` (height, width), or None."""
    for kind, (is_plain, count) in _FORMULAS.items():
        if type(model) is kind and is_plain(model):
            return count(model, *size)
    return None


def metala_vit(model: MetaLAViT, height: int, width: int) -> Formula:
    """Per token and block of width D: 3 R D^2 for the SwiGLU of ratio R, and what `of_mixer` says of the token mixer.

    9 R D for the convolution in the SwiGLU's gate (4 R D for a causal one); norms of 5 D twice.
    """
    dim, patch = model.embed_dim, model.patch_embed.patch_size[0]
    grid = -(-height // patch), -(-width // patch)
    tokens = grid[0] * grid[1]
    products = tokens * model.in_chans * patch * patch * dim
    others = (2 * len(model.blocks) + 1) * tokens * 5 * dim
    block: Any  # torch.nn.Sequential does not say what it contains
    for block in model.blocks:
        conv = 0 if block.mlp.conv is None else sum(p.numel() for p in block.mlp.conv.parameters())
        products += tokens * (3 * block.mlp.fc2.in_features * dim + conv)
        mixer = of_mixer(block.mixer, tokens)
        assert mixer is not None
        products, others = products + mixer[0], others + mixer[1]
    if model.pos_embed is not None and grid != model.pos_grid:
        others += 16 * tokens * dim  # resampled with 4 x 4 weights
    return Formula(products + dim * model.num_classes, others)


def vision_transformer(model: VisionTransformer, height: int, width: int) -> Formula:
    """Per block, of width D and hidden width M over T tokens, the class token one of them:

    T (4 D^2 + 2 D M) for the linear layers and 2 T^2 D for attention, scores and their sums; norms of 5 D twice.
    """
    dim, patch = model.embed_dim, model.patch_embed.patch_size[0]
    patches = height // patch * (width // patch)
    tokens = patches + model.num_prefix_tokens
    products = patches * model.patch_embed.proj.in_channels * patch * patch * dim + dim * model.num_classes
    for block in model.blocks:
        products += tokens * (4 * dim * dim + 2 * dim * block.mlp.fc1.out_features) + 2 * tokens * tokens * dim
    return Formula(products, (2 * len(model.blocks) + 1) * tokens * 5 * dim)


def xcit(model: Xcit, height: int, width: int) -> Formula:
    """Per block, of width D and H heads over N tokens: N (12 D^2 + 2 D D / H + 18 D), attention being between channels.

    Beside the blocks there are a stem of 3x3 convolutions of stride 2, each with a batch norm that counts 2; 64
    channels of sines that are projected to D; and class attention blocks, where one query meets N + 1 keys, and the MLP
    sees the class token alone.
    """
    dim, classes = model.embed_dim, model.num_classes
    products = others = 0
    stem = [module for module in model.patch_embed.proj.modules() if isinstance(module, nn.Conv2d)]
    for conv in stem:
        height, width = -(-height // 2), -(-width // 2)
        products += 9 * conv.in_channels * conv.out_channels * height * width
        others += 2 * conv.out_channels * height * width
    tokens = height * width
    products += tokens * 64 * dim if model.pos_embed is not None else 0
    for block in model.blocks:
        products += tokens * (12 * dim * dim + 2 * dim * dim // block.attn.num_heads + 18 * dim)
        others += tokens * dim * (3 * 5 + 2)
    for block in model.cls_attn_blocks:
        products += 2 * (tokens + 1) * dim * dim + 2 * (tokens + 1) * dim + 2 * dim * dim + 8 * dim * dim
        others += 5 * dim * (tokens + 1 + (tokens + 1 if block.tokens_norm else 1))
    return Formula(products + dim * classes, others + 5 * dim * (tokens + 1))


def efficientvit(model: EfficientVit, height: int, width: int) -> Formula:
    """Inverted residuals of 1x1, depthwise 3x3 and 1x1 convolutions, C -> M -> M -> D: C M, 9 M and M D a pixel.

    In the last two stages also linear attention at two scales, of width C in heads of d, a pixel: 3 C^2 to q, k and v,
    3 C (25 + d) to their second scale, 4 C (d + 1) for k^T v and its product with q, and 2 C^2 for the projection.
    """
    products = others = 0
    width_in = model.stem.in_conv.conv.out_channels
    pixels = -(-height // 2) * -(-width // 2)
    products += 27 * width_in * pixels + (len(model.stem) - 1) * (9 * width_in + width_in**2) * pixels
    others += 2 * width_in * pixels * (1 + 2 * (len(model.stem) - 1))
    reach = 2
    for stage in model.stages:
        attends = any(isinstance(block, EfficientVitBlock) for block in stage.blocks)
        before, reach = pixels, 2 * reach
        pixels = -(-height // reach) * -(-width // reach)
        for number, block in enumerate(stage.blocks):
            inverted = (block.local_module if isinstance(block, EfficientVitBlock) else block).main
            mid, dim = inverted.point_conv.conv.in_channels, inverted.point_conv.conv.out_channels
            first = before if number == 0 else pixels
            products += width_in * mid * first + (9 * mid + mid * dim) * pixels
            others += 2 * dim * pixels + (0 if attends else 2 * mid * (first + pixels))
            if isinstance(block, EfficientVitBlock):
                head = block.context_module.main.dim
                products += (5 * dim**2 + 3 * dim * (25 + head) + 4 * dim * (head + 1)) * pixels
                others += 2 * dim * pixels
            width_in = dim
    expand, classify = (module for module in model.head.classifier if isinstance(module, nn.Linear))
    hidden, wide = expand.in_features, expand.out_features
    products += width_in * hidden * pixels + hidden * wide + classify.in_features * classify.out_features
    return Formula(products, others + 3 * hidden * pixels + 5 * wide)


def _is_plain_vit(model: VisionTransformer) -> bool:
    """Whether it is a ViT or DeiT as published, without what timm's class can also have."""
    return (
        type(model.patch_embed) is PatchEmbed
        and all(type(block) is Block and type(block.mlp) is Mlp for block in model.blocks)
        and all(type(block.attn.q_norm) is nn.Identity for block in model.blocks)
        and model.attn_pool is None
        and type(model.norm_pre) is type(model.fc_norm) is nn.Identity
    )


def _has_known_mixers(model: MetaLAViT) -> bool:
    blocks: Any = model.blocks
    return all(of_mixer(block.mixer, 1) is not None for block in blocks)


_FORMULAS = {
    MetaLAViT: (_has_known_mixers, metala_vit),
    VisionTransformer: (_is_plain_vit, vision_transformer),
    Xcit: (lambda model: True, xcit),
    EfficientVit: (lambda model: True, efficientvit),
}
