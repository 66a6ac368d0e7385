"""RetinaNet on MetaLA-ViT tiny, on COCO for 12 epochs.

Command:  torchrun --nproc-per-node 8 tools/train.py configs/coco/retinanet_metala_vit_tiny_coco_12e.py \\
              --launcher pytorch --amp --data-root COCO --cfg-options model.init_from=CHECKPOINT
Cost and accuracy: nobody has run it yet; add --dry-run for an estimate of its time and memory
"""

_base_ = ["../_base_/detection.py", "../_base_/coco_12e.py"]

model = dict(
    kind="retinanet",
    backbone=dict(model_name="metala_vit_tiny", drop_path_rate=0.1),
    init_from="work_dirs/metala_vit_tiny_224_imagenet_300e_deit/last.pth",
)
