"""MetaLA-ViT tiny (width 192, depth 12) on Imagenette at 160 pixels, patches of 16, 100 tokens.

Command: python tools/train.py configs/imagenette/metala_vit_tiny_160_imagenette_30e.py --data-root FOLDER
Cost and accuracy: not run yet; --dry-run estimates the time of your machine
"""

_base_ = ["../_base_/classification.py", "../_base_/imagenette.py"]

model = dict(backbone=dict(model_name="metala_vit_tiny", num_classes=10, img_size=160, drop_path_rate=0.1))
default_hooks = dict(checkpoint=dict(save_best=None))
