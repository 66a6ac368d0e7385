"""FCOS on MetaLA-ViT nano with patches of 8 pixels, from scratch, on blood cells at 320x240. One stage: it is exported.

Command: python tools/train.py configs/bccd/fcos_metala_vit_nano_p8_320_bccd_20e.py --data-root FOLDER
Measured (seed 0, one busy core of an AMD EPYC, float32): mAP 0.571, mAP50 0.871 on the 87 validation images.
"""

_base_ = ["../_base_/detection.py", "../_base_/bccd.py"]

model = dict(
    _delete_=True,
    type="ImageDetector",
    kind="fcos",
    backbone=dict(model_name="metala_vit_nano", img_size=(240, 320), patch_size=8, drop_path_rate=0.1),
    num_classes=3,
    out_channels=128,
    strides=(8, 16, 32),
    min_size=240,
    max_size=320,
)
