"""DeiT-tiny, timm's, for comparison with metala_vit_tiny_160_imagenette_30e.py.

Command: python tools/train.py configs/imagenette/deit_tiny_160_imagenette_30e.py --data-root FOLDER
Cost and accuracy: not run yet; --dry-run estimates the time of your machine
"""

_base_ = ["../_base_/classification.py", "../_base_/imagenette.py"]

model = dict(backbone=dict(model_name="deit_tiny_patch16_224", num_classes=10, img_size=160, drop_path_rate=0.1))
default_hooks = dict(checkpoint=dict(save_best=None))
