"""MetaLA-ViT base at 224 pixels on ImageNet-1k, by the recipe of the MetaLA paper.

Command: torchrun --nproc-per-node 8 tools/train.py configs/imagenet/metala_vit_base_224_imagenet_300e_paper.py \\
             --launcher pytorch --amp --data-root FOLDER
Cost:    not run; add --dry-run for an estimate on your machine. 8 processes of 256 images make 2048 a step;
         with other numbers the rate is scaled
Target:  the paper has no figure for this size
"""

_base_ = ["../_base_/classification.py", "../_base_/imagenet.py", "../_base_/imagenet_300e_paper.py"]

model = dict(
    backbone=dict(model_name="metala_vit_base", drop_path_rate=0.1),
)
default_hooks = dict(checkpoint=dict(save_best=None))
