"""timm's ViT of width 128 and depth 6, for comparison with metala_vit_nano_160_imagenette_30e.py.

Command: python tools/train.py configs/imagenette/vit_nano_160_imagenette_30e.py --data-root FOLDER
Cost and accuracy: 61 minutes on one core of an AMD EPYC with --amp; 61.5 percent top-1 (seed 0)
"""

_base_ = ["../_base_/classification.py", "../_base_/imagenette.py"]

model = dict(
    backbone=dict(
        model_name="vit_tiny_patch16_224",
        num_classes=10,
        img_size=160,
        embed_dim=128,
        depth=6,
        num_heads=2,
        drop_path_rate=0.05,
    ),
)
default_hooks = dict(checkpoint=dict(save_best=None))
