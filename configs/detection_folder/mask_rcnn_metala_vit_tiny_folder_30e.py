"""Mask R-CNN on MetaLA-ViT tiny, on your own boxes and masks at COCO's size: shorter sides of 480 to 800 pixels.

Command: python tools/train.py configs/detection_folder/mask_rcnn_metala_vit_tiny_folder_30e.py \\
             --data-root FOLDER --num-classes N
To start from trained weights, which few images need: add --cfg-options model.init_from=CHECKPOINT
Cost and accuracy: those of your folder; add --dry-run for an estimate
"""

_base_ = ["../_base_/detection.py", "../_base_/detection_folder.py"]

model = dict(
    type="ImageDetector",
    kind="mask_rcnn",
    backbone=dict(model_name="metala_vit_tiny", drop_path_rate=0.1),
    num_classes=1,
    min_size=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    max_size=1333,
)
dataset = dict(masks=True)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
