"""MetaLA-ViT tiny fine-tuned at 512 pixels on ImageNet-1k, from its weights at 224.

Command: torchrun --nproc-per-node 8 tools/train.py configs/imagenet/metala_vit_tiny_512_imagenet_30e_finetune.py \\
             --launcher pytorch --amp --data-root FOLDER --cfg-options model.init_from=CHECKPOINT
Cost:    not run; add --dry-run for an estimate on your machine. 8 processes of 64 images make 512 a step; with
         other numbers the rate is scaled
Target:  no figure is published for this model
"""

_base_ = ["../_base_/classification.py", "../_base_/imagenet.py", "../_base_/imagenet_30e_finetune.py"]

model = dict(
    backbone=dict(model_name="metala_vit_tiny", img_size=512, drop_path_rate=0.1),
    init_from="work_dirs/metala_vit_tiny_224_imagenet_300e_deit/last.pth",
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0),
)
default_hooks = dict(checkpoint=dict(save_best=None))
train_dataloader = dict(batch_size=64, dataset=dict(transform=dict(img_size=512)))
val_dataloader = dict(dataset=dict(transform=dict(img_size=512, crop_ratio=1.0)))
test_dataloader = dict(dataset=dict(transform=dict(img_size=512, crop_ratio=1.0)))
