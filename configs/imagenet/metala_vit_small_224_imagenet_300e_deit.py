"""MetaLA-ViT small at 224 pixels on ImageNet-1k, by the recipe of DeiT.

Command: torchrun --nproc-per-node 8 tools/train.py configs/imagenet/metala_vit_small_224_imagenet_300e_deit.py \\
             --launcher pytorch --amp --data-root FOLDER
Cost:    not run; add --dry-run for an estimate on your machine. 8 processes of 128 images make 1024 a step;
         with other numbers the rate is scaled
Target:  no figure is published for this model by this recipe
"""

_base_ = ["../_base_/classification.py", "../_base_/imagenet.py", "../_base_/imagenet_300e_deit.py"]

model = dict(
    backbone=dict(model_name="metala_vit_small", drop_path_rate=0.1),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0),
)
default_hooks = dict(checkpoint=dict(save_best=None))
train_dataloader = dict(batch_size=128)
