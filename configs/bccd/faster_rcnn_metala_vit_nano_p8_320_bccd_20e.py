"""Faster R-CNN on MetaLA-ViT nano with patches of 8 pixels, from scratch, on blood cells at 320x240.

Command: python tools/train.py configs/bccd/faster_rcnn_metala_vit_nano_p8_320_bccd_20e.py --data-root FOLDER
Measured (seed 0, one core of an AMD EPYC, float32): mAP 0.569, mAP50 0.887 on the 87 validation images. Before there
was a decay_bias a step took 0.72 s on 2 cores of an Intel Xeon (tools/bench_detector.py).
"""

_base_ = ["../_base_/detection.py", "../_base_/bccd.py"]

model = dict(
    backbone=dict(model_name="metala_vit_nano", img_size=(240, 320), patch_size=8, drop_path_rate=0.1),
)
