"""Faster R-CNN on MetaLA-ViT nano with patches of 8 pixels, from scratch, on blood cells at 320x240.

Command: python tools/train.py configs/bccd/faster_rcnn_metala_vit_nano_p8_320_bccd_20e.py --data-root FOLDER
"""

_base_ = ["../_base_/detection.py", "../_base_/bccd.py"]

model = dict(backbone=dict(model_name="metala_vit_nano", patch_size=8, drop_path_rate=0.1))
