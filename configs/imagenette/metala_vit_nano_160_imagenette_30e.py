"""MetaLA-ViT nano (width 128, depth 6) on Imagenette at 160 pixels, patches of 16, 100 tokens.

Command: python tools/train.py configs/imagenette/metala_vit_nano_160_imagenette_30e.py --data-root FOLDER
Cost and accuracy: 50 minutes on one core of an AMD EPYC (Zen 5) with --amp; 74.2 percent top-1
(seed 0, float32; 72.9 with --amp and model.backbone.decay_bias=False: before there was one)
"""

_base_ = ["../_base_/classification.py", "../_base_/imagenette.py"]

model = dict(backbone=dict(model_name="metala_vit_nano", num_classes=10, img_size=160, drop_path_rate=0.05))
default_hooks = dict(checkpoint=dict(save_best=None))
