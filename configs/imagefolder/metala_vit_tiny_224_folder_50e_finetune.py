"""MetaLA-ViT tiny fine-tuned on a folder of images, from a checkpoint of other classes, by layer-wise rate decay.

Command: python tools/train.py configs/imagefolder/metala_vit_tiny_224_folder_50e_finetune.py \\
             --data-root FOLDER --num-classes N --cfg-options model.init_from=CHECKPOINT
Cost and accuracy: those of your folder; add --dry-run for an estimate
"""

_base_ = ["../_base_/classification.py", "../_base_/folder_224.py"]

epochs = 50

model = dict(
    backbone=dict(model_name="metala_vit_tiny", num_classes=1000, drop_path_rate=0.1),
    init_from="work_dirs/metala_vit_tiny_224_imagenet_300e_paper/last.pth",
    label_smoothing=0.1,
)
custom_hooks = [dict(type="ModelEmaHook", decay=0.9998, use_warmup=True)]
train_cfg = dict(by_epoch=True, max_epochs=epochs)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(layer_decay=0.75),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-3, by_epoch=True, begin=5, end=epochs, convert_to_iter_based=True),
]
