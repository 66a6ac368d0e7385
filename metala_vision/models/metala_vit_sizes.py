"""The models of timm's registry: MetaLA-ViT in five sizes."""

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .checkpoints import checkpoint_filter_fn
from .metala_vit import MetaLAViT


def _create_metala_vit(variant: str, pretrained: bool = False, **kwargs) -> MetaLAViT:
    return build_model_with_cfg(
        MetaLAViT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=kwargs.pop("out_indices", 3), feature_cls="getter"),
        **kwargs,
    )


def _cfg(**kwargs) -> dict:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2411.10741",
        **kwargs,
    }


SIZES = ("nano", "tiny", "small", "base", "large")
default_cfgs = generate_default_cfgs({f"metala_vit_{size}": _cfg() for size in SIZES})


@register_model
def metala_vit_nano(pretrained: bool = False, **kwargs) -> MetaLAViT:
    """1.5 M parameters, for small images (with a smaller `patch_size`), tests and CPU experiments."""
    args = dict(embed_dim=128, depth=6, num_heads=2)
    return _create_metala_vit("metala_vit_nano", pretrained, **dict(args, **kwargs))


@register_model
def metala_vit_tiny(pretrained: bool = False, **kwargs) -> MetaLAViT:
    """6.1 M parameters."""
    args = dict(embed_dim=192, depth=12, num_heads=3)
    return _create_metala_vit("metala_vit_tiny", pretrained, **dict(args, **kwargs))


@register_model
def metala_vit_small(pretrained: bool = False, **kwargs) -> MetaLAViT:
    """23.7 M parameters."""
    args = dict(embed_dim=384, depth=12, num_heads=6)
    return _create_metala_vit("metala_vit_small", pretrained, **dict(args, **kwargs))


@register_model
def metala_vit_base(pretrained: bool = False, **kwargs) -> MetaLAViT:
    """93 M parameters."""
    args = dict(embed_dim=768, depth=12, num_heads=12)
    return _create_metala_vit("metala_vit_base", pretrained, **dict(args, **kwargs))


@register_model
def metala_vit_large(pretrained: bool = False, **kwargs) -> MetaLAViT:
    """329 M parameters."""
    args = dict(embed_dim=1024, depth=24, num_heads=16)
    return _create_metala_vit("metala_vit_large", pretrained, **dict(args, **kwargs))
