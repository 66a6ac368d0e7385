"""Faster R-CNN on MetaLA-ViT nano with patches of 8 pixels, from scratch, on your own boxes at up to 320 pixels.

Made for a CPU, and for objects of 15 to 120 pixels at that size. 200 photographs take ten minutes on two cores.

Command: python tools/train.py configs/detection_folder/faster_rcnn_metala_vit_nano_p8_320_folder_12e.py \\
             --data-root FOLDER --num-classes N
Cost and accuracy: those of your folder; add --dry-run for an estimate
"""

_base_ = ["../_base_/detection.py", "../_base_/detection_folder.py"]

epochs = 12

train_cfg = dict(max_epochs=epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]
model = dict(
    type="ImageDetector",
    kind="faster_rcnn",
    backbone=dict(model_name="metala_vit_nano", img_size=(240, 320), patch_size=8, drop_path_rate=0.1),
    num_classes=1,
    out_channels=128,
    strides=(8, 16, 32),
    anchor_scale=2.5,  # sides of 20, 40 and 80 pixels
    min_size=240,
    max_size=320,
    rpn_batch_size_per_image=128,
    rpn_pre_nms_top_n_train=1000,
    rpn_post_nms_top_n_train=500,
    rpn_pre_nms_top_n_test=500,
    rpn_post_nms_top_n_test=300,
    box_batch_size_per_image=128,
)
