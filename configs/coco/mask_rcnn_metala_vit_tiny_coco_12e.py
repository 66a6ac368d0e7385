"""Mask R-CNN on MetaLA-ViT tiny, on COCO for 12 epochs.

Command:  torchrun --nproc-per-node 8 tools/train.py configs/coco/mask_rcnn_metala_vit_tiny_coco_12e.py \\
              --launcher pytorch --amp --data-root COCO --cfg-options model.init_from=CHECKPOINT
Cost and accuracy: nobody has run it yet; add --dry-run for an estimate of its time and memory
"""

_base_ = ["../_base_/detection.py", "../_base_/coco_12e.py"]

model = dict(
    kind="mask_rcnn",
    backbone=dict(model_name="metala_vit_tiny", drop_path_rate=0.1),
    init_from="work_dirs/metala_vit_tiny_224_imagenet_300e_deit/last.pth",
)
train_dataloader = dict(dataset=dict(masks=True))
val_dataloader = dict(dataset=dict(masks=True))
test_dataloader = dict(dataset=dict(masks=True))
