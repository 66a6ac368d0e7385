"""A linear probe: only the classifier of MetaLA-ViT tiny is trained on a folder of images, from a checkpoint.

Command: python tools/train.py configs/imagefolder/metala_vit_tiny_224_folder_30e_linear.py \\
             --data-root FOLDER --num-classes N --cfg-options model.init_from=CHECKPOINT
Cost and accuracy: those of your folder; add --dry-run for an estimate
"""

_base_ = ["../_base_/classification.py", "../_base_/folder_224.py"]

epochs = 30

model = dict(
    backbone=dict(model_name="metala_vit_tiny", num_classes=1000),
    init_from="work_dirs/metala_vit_tiny_224_imagenet_300e_paper/last.pth",
    train_only_head=True,
)
train_cfg = dict(by_epoch=True, max_epochs=epochs)
train_dataloader = dict(dataset=dict(transform=dict(strength="light", scale=(0.3, 1.0))))
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=3e-3, weight_decay=0.0))
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=True, end=epochs, convert_to_iter_based=True),
]
