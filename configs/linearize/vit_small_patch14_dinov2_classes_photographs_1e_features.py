"""DINOv2's ViT-S/14 with attention to classes of keys, second stage: all weights learn the teacher's final tokens.

Command: python tools/train.py configs/linearize/vit_small_patch14_dinov2_classes_photographs_1e_features.py \\
             --data-root FOLDER
Measured: two epochs, 41 minutes on one busy core of an AMD EPYC, 1425 photographs at 154 pixels; see
docs/results.md
"""

_base_ = ["vit_small_patch14_dinov2_classes_photographs_1e_blocks.py"]

model = dict(
    stage="features",
    init_from="work_dirs/vit_small_patch14_dinov2_classes_photographs_1e_blocks/last.pth",
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
