"""The backbone and its pyramid in mmengine's registry, for configs of mmdet, mmseg and mmpretrain.

A config brings them in by `custom_imports = dict(imports=["metala_vision.engine.openmmlab"])`.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from mmengine.registry import MODELS
from timm.models import load_state_dict
from torch import Tensor, nn

from metala_vision.dense import PyramidNeck
from metala_vision.errors import InputError
from metala_vision.models import metala_vit
from metala_vision.models.checkpoints import fill_older

ARCHS = ("nano", "tiny", "small", "base", "large")


@MODELS.register_module()
class MetaLAViT(metala_vit.MetaLAViT):
    """MetaLA-ViT in OpenMMLab's form of a backbone: it returns a tuple of maps, can freeze stages, and has `init_cfg`.

    Its parameters have the names of the timm model, so that checkpoints of either fit the other.

    Args:
        arch: "nano", "tiny", "small", "base" or "large", or a dict with embed_dim, depth and num_heads.
        out_indices: indices of the blocks whose outputs are returned; negative ones count from the end.
        out_norm: apply the final norm to each output.
        frozen_stages: -1 freezes nothing, 0 the patch embedding, n also the first n blocks.
        init_cfg: None, or dict(type="Pretrained", checkpoint=FILE): a state_dict, or a checkpoint of tools/train.py.
        with_cp: recompute activations in the backward pass, for less memory.
        **options: arguments of the timm model, such as img_size, patch_size, in_chans, scan or drop_path_rate.

    Raises:
        InputError: an argument that does not fit.
    """

    def __init__(
        self,
        arch: str | dict = "tiny",
        out_indices: int | Sequence[int] = -1,
        out_norm: bool = True,
        frozen_stages: int = -1,
        init_cfg: dict | None = None,
        with_cp: bool = False,
        **options: Any,
    ):
        if isinstance(arch, str) and arch not in ARCHS:
            raise InputError(f"arch: got {arch!r}, expected one of {ARCHS}, or a dict")
        if init_cfg is not None and (init_cfg.get("type") != "Pretrained" or "checkpoint" not in init_cfg):
            raise InputError(f"init_cfg: got {init_cfg!r}, expected None or dict(type='Pretrained', checkpoint=FILE)")
        self.init_cfg = None  # the constructor of the base class initialises all parameters
        sizes = _sizes(arch) if isinstance(arch, str) else dict(arch)
        super().__init__(num_classes=0, global_pool="", **{**sizes, **options})
        self.init_cfg = init_cfg
        depth = len(self.blocks)
        indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
        if not indices or not all(-depth <= i < depth for i in indices):
            raise InputError(f"out_indices: got {out_indices!r}, expected numbers of the {depth} blocks")
        if not -1 <= frozen_stages <= depth:
            raise InputError(f"frozen_stages: got {frozen_stages!r}, expected -1 to {depth}")
        self.out_indices = tuple(sorted({i % depth for i in indices}))
        self.out_norm = out_norm
        self.frozen_stages = frozen_stages
        # Parameters that get no gradient would stop distributed training.
        self.prune_intermediate_layers(list(self.out_indices), prune_norm=not out_norm)
        self.set_grad_checkpointing(with_cp)
        self._freeze()

    def init_weights(self) -> None:
        """Initialises every parameter, or loads them where `init_cfg` says so.

        Raises:
            InputError: weights of another model, with the keys that are missing.
        """
        if self.init_cfg is None:
            super().init_weights()
            return
        file = self.init_cfg["checkpoint"]
        weights = load_state_dict(file, weights_only=True)
        fill_older(weights, self)
        own = self.state_dict()
        missing = [key for key in own if key not in weights or weights[key].shape != own[key].shape]
        if missing:
            raise InputError(f"init_cfg: {file} does not fit; missing or of another shape: {', '.join(missing[:10])}")
        self.load_state_dict({key: weights[key] for key in own})

    def forward(self, x: Tensor) -> Any:  # a tuple, where the timm model's forward gives one tensor
        """[B, in_chans, height, width] -> a tuple with a map [B, C, rows, columns] for each of `out_indices`."""
        return tuple(self.forward_intermediates(x, list(self.out_indices), norm=self.out_norm, intermediates_only=True))

    def train(self, mode: bool = True) -> "MetaLAViT":
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        for stage in (self.patch_embed, *self.blocks[: self.frozen_stages]):
            stage.eval()
            stage.requires_grad_(False)


def _sizes(arch: str) -> dict:
    """embed_dim, depth and num_heads of the timm model of this size."""
    model = timm.create_model(f"metala_vit_{arch}", device="meta")
    return dict(embed_dim=model.embed_dim, depth=len(model.blocks), num_heads=model.blocks[0].mixer.num_heads)


@MODELS.register_module()
class SimpleFeaturePyramidNeck(nn.Module):
    """ViTDet's pyramid as a neck: the last of a backbone's maps in, a tuple of maps out.

    Args:
        in_channels: channels of the backbone's map.
        in_stride: image pixels between two positions of the backbone's map.
        out_channels: channels of every level.
        strides: image pixels between two positions of each level.
        init_cfg: must be None; the parameters are initialised as torch does.
    """

    def __init__(
        self,
        in_channels: int,
        in_stride: int = 16,
        out_channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32),
        init_cfg: dict | None = None,
    ):
        super().__init__()
        if init_cfg is not None:
            raise InputError(f"init_cfg: got {init_cfg!r}, expected None")
        self.in_stride = in_stride
        self.neck = PyramidNeck(in_channels, in_stride, out_channels, strides)

    def forward(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """[B, in_channels, rows, columns], or a sequence of maps whose last is used -> a map for each stride."""
        x = inputs if isinstance(inputs, torch.Tensor) else inputs[-1]
        rows, cols = x.shape[-2:]
        return tuple(self.neck(x, (rows * self.in_stride, cols * self.in_stride)))
