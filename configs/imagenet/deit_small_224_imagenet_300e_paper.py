"""DeiT small at 224 pixels on ImageNet-1k, by the recipe of the MetaLA paper.

Command: torchrun --nproc-per-node 8 tools/train.py configs/imagenet/deit_small_224_imagenet_300e_paper.py \\
             --launcher pytorch --amp --data-root FOLDER
Cost:    not run; add --dry-run for an estimate on your machine. 8 processes of 256 images make 2048 a step;
         with other numbers the rate is scaled
Target:  no figure is published for this model by this recipe
"""

_base_ = ["../_base_/classification.py", "../_base_/imagenet.py", "../_base_/imagenet_300e_paper.py"]

model = dict(
    backbone=dict(model_name="deit_small_patch16_224", drop_path_rate=0.1),
)
default_hooks = dict(checkpoint=dict(save_best=None))
