"""DINOv2's ViT-S/14 with attention to classes of keys, first stage: every attention learns what its teacher returns.

Command: python tools/train.py configs/linearize/vit_small_patch14_dinov2_classes_photographs_1e_blocks.py \\
             --data-root FOLDER
         with weights of your own --cfg-options model.teacher.pretrained=False model.teacher.checkpoint_path=FILE
Measured: 14 minutes on one busy core of an AMD EPYC, 1425 photographs at 154 pixels; cosine 93.9, see
docs/results.md
"""

_base_ = ["../_base_/photographs.py"]

epochs = 1

model = dict(
    backbone=dict(
        model_name="linearized_vit", teacher="vit_small_patch14_dinov2", mixer="classes", states=64, num_classes=0
    ),
    teacher=dict(pretrained=True),
    stage="blocks",
)
train_cfg = dict(by_epoch=True, max_epochs=epochs)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=False, end=10),  # in steps: an epoch of a small folder has few
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-2, by_epoch=True, end=epochs, convert_to_iter_based=True),
]
