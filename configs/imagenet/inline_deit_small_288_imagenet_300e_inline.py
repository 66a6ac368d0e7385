"""InLine-DeiT-S at 288 pixels on ImageNet-1k, by InLine's recipe.

Command: torchrun --nproc-per-node 8 tools/train.py configs/imagenet/inline_deit_small_288_imagenet_300e_inline.py \\
             --launcher pytorch --amp --data-root FOLDER
Cost:    not run; add --dry-run for an estimate on your machine. 8 processes of 128 images make 1024 a step;
         with other numbers the rate is scaled
Target:  80.2 percent top-1 is the paper's figure (arXiv 2412.06590)
"""

_base_ = ["../_base_/classification.py", "../_base_/imagenet.py", "../_base_/imagenet_300e_inline.py"]

model = dict(
    backbone=dict(model_name="inline_deit_small_patch16_288", drop_path_rate=0.1),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0),
)
default_hooks = dict(checkpoint=dict(save_best=None))
train_dataloader = dict(batch_size=128, dataset=dict(transform=dict(img_size=288)))
val_dataloader = dict(dataset=dict(transform=dict(img_size=288)))
test_dataloader = dict(dataset=dict(transform=dict(img_size=288)))
