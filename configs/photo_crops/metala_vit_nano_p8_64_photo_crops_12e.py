"""MetaLA-ViT nano (width 128, depth 6)
on grey crops of 17 photographs at 64 pixels, patches of 8, 64 tokens.

Command:  python tools/photo_crops.py
          python tools/train.py configs/photo_crops/metala_vit_nano_p8_64_photo_crops_12e.py
Cost:     4.5 minutes on one core of an Intel Xeon with AVX-512
Accuracy: 70.78, 69.31 and 70.98 percent of the test crops (seeds 0, 1, 2), with
          model.backbone.decay_bias=False: from before there was one
"""

_base_ = ["../_base_/classification.py", "../_base_/photo_crops.py"]

model = dict(
    type="ImageClassifier",
    backbone=dict(
        model_name="metala_vit_nano",
        num_classes=17,
        in_chans=1,
        img_size=64,
        patch_size=8,
        drop_path_rate=0.05,
    ),
    mean=(0.41,),
    std=(0.22,),
    label_smoothing=0.1,
)
default_hooks = dict(checkpoint=dict(save_best=None))
