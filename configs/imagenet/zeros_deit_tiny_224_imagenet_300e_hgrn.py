"""DeiT tiny with ZeroS at 224 pixels on ImageNet-1k, by HGRN's recipe.

Command: torchrun --nproc-per-node 8 tools/train.py configs/imagenet/zeros_deit_tiny_224_imagenet_300e_hgrn.py \\
             --launcher pytorch --amp --data-root FOLDER
Cost:    not run; add --dry-run for an estimate on your machine. 8 processes of 256 images make 2048 a step;
         with other numbers the rate is scaled
Target:  75.51 percent top-1 is the paper's figure (arXiv 2602.05230), against 72.2 of DeiT
"""

_base_ = ["../_base_/classification.py", "../_base_/imagenet.py", "../_base_/imagenet_300e_hgrn.py"]

model = dict(
    backbone=dict(model_name="zeros_deit_tiny_patch16_224", drop_path_rate=0.0),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0),
)
default_hooks = dict(checkpoint=dict(save_best=None))
train_dataloader = dict(batch_size=256)
