"""DINOv2's ViT-S/14 with attention to classes of keys, third stage: labelled images, a folder for each class.

Command: python tools/train.py configs/linearize/vit_small_patch14_dinov2_classes_imagefolder_5e_task.py \\
             --data-root FOLDER --num-classes N
Cost and accuracy: not measured yet; --dry-run estimates the time of your machine
"""

_base_ = ["../_base_/classification.py", "../_base_/folder_224.py"]

epochs = 5

model = dict(
    backbone=dict(
        model_name="linearized_vit",
        teacher="vit_small_patch14_dinov2",
        mixer="classes",
        states=64,
        num_classes=10,
        drop_path_rate=0.05,
    ),
    init_from="work_dirs/vit_small_patch14_dinov2_classes_photographs_1e_features/last.pth",
    label_smoothing=0.1,
)
train_cfg = dict(by_epoch=True, max_epochs=epochs)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(layer_decay=0.75),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=False, end=10),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-2, by_epoch=True, end=epochs, convert_to_iter_based=True),
]
