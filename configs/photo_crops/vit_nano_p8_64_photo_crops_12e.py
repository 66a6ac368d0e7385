"""timm's ViT of width 128 and depth 6, for comparison with metala_vit_nano_p8_64_photo_crops_12e.py,
on grey crops of 17 photographs at 64 pixels, patches of 8, 64 tokens.

Command:  python tools/photo_crops.py
          python tools/train.py configs/photo_crops/vit_nano_p8_64_photo_crops_12e.py
Cost:     4.5 minutes on one core of an Intel Xeon with AVX-512
Accuracy: 66.08, 67.84 and 71.08 percent of the test crops (seeds 0, 1, 2)
"""

_base_ = ["../_base_/classification.py", "../_base_/photo_crops.py"]

model = dict(
    type="ImageClassifier",
    backbone=dict(
        model_name="vit_tiny_patch16_224",
        num_classes=17,
        in_chans=1,
        img_size=64,
        patch_size=8,
        embed_dim=128,
        depth=6,
        num_heads=2,
        drop_path_rate=0.05,
    ),
    mean=(0.41,),
    std=(0.22,),
    label_smoothing=0.1,
)
default_hooks = dict(checkpoint=dict(save_best=None))
