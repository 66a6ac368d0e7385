"""A MetaLA of width 64 and depth 4 on Pathfinder: 1024 pixels, one after the other; curves of 6 dashes.

Command: python tools/train.py configs/long_range/metala_vit_w64_pixels_pathfinder32_10e.py
         with longer curves --cfg-options {train,val,test}_dataloader.dataset.dashes=9, with another mixer
         --cfg-options model.backbone.mixer=ssd
Cost and accuracy: not measured yet; --dry-run estimates the time of your machine
"""

_base_ = ["../_base_/classification.py", "../_base_/pathfinder.py"]

epochs = 10
model = dict(
    type="ImageClassifier",
    backbone=dict(
        model_name="metala_vit_nano",
        num_classes=2,
        in_chans=1,
        img_size=(1, 1024),
        patch_size=1,
        embed_dim=64,
        depth=4,
        num_heads=2,
        scan="row",
    ),
    mean=(0.033,),
    std=(0.131,),
)
default_hooks = dict(checkpoint=dict(save_best=None))
train_dataloader = dict(batch_size=64, dataset=dict(images=40_000))
val_dataloader = dict(batch_size=64, dataset=dict(images=2000))
test_dataloader = dict(batch_size=64, dataset=dict(images=5000))

train_cfg = dict(by_epoch=True, max_epochs=epochs)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]
