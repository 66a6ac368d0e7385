"""MetaLA-ViT nano at 128 pixels from scratch on a folder of images with one subfolder per class: made for a CPU.

Command: python tools/train.py configs/imagefolder/metala_vit_nano_128_folder_30e.py \\
             --data-root FOLDER --num-classes N
Cost and accuracy: those of your folder; add --dry-run for an estimate
"""

_base_ = ["../_base_/classification.py", "../_base_/folder_224.py"]

epochs = 30
img_size = 128
batch_size = 16  # small, so that a small folder gives many steps

model = dict(
    backbone=dict(model_name="metala_vit_nano", img_size=img_size, num_classes=1000, drop_path_rate=0.1),
    label_smoothing=0.1,
)
train_dataloader = dict(
    batch_size=batch_size, num_workers=1, dataset=dict(transform=dict(img_size=img_size, scale=(0.35, 1.0)))
)
val_dataloader = dict(batch_size=batch_size, num_workers=1, dataset=dict(transform=dict(img_size=img_size)))
test_dataloader = dict(batch_size=batch_size, num_workers=1, dataset=dict(transform=dict(img_size=img_size)))
# With few validation images many epochs have the same top-1, and the first of them would be taken for the best.
default_hooks = dict(checkpoint=dict(save_best="loss"))
train_cfg = dict(by_epoch=True, max_epochs=epochs)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-3, by_epoch=True, begin=2, end=epochs, convert_to_iter_based=True),
]
