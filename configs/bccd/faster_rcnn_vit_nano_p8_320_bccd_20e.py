"""The detector of faster_rcnn_metala_vit_nano_p8_320_bccd_20e.py on timm's softmax ViT of equal width and depth.

Command: python tools/train.py configs/bccd/faster_rcnn_vit_nano_p8_320_bccd_20e.py --data-root FOLDER
Measured (seed 0, 2 cores of an Intel Xeon, each image flipped both ways or not at all): mAP 0.561, mAP50 0.888; 1.01 s
a step.
"""

_base_ = ["../_base_/detection.py", "../_base_/bccd.py"]

model = dict(
    backbone=dict(
        model_name="vit_tiny_patch16_224",
        img_size=(240, 320),
        patch_size=8,
        embed_dim=128,
        depth=6,
        num_heads=2,
        drop_path_rate=0.1,
    )
)
