"""MetaLA on Pathfinder by the paper's settings: pixel by pixel, 1024 of them; width 128, depth 6, curves of 14 dashes.

Command: torchrun --nproc-per-node 4 tools/train.py \\
             configs/long_range/metala_vit_w128_pixels_pathfinder32_800e_paper.py --launcher pytorch --amp
Cost:    not run: 500 000 steps of 256 pictures (4 processes of 64); add --dry-run for an estimate on your machine
Target:  91.66 percent is the paper's figure (arXiv 2411.10741, table 7) on the pictures of Long Range Arena, which ours
         are not. Its width, depth, hidden channels, rate, warm-up and steps; it does not say how it joins the two
         directions, and has a norm over 4 channels where ours is over those of a head
"""

_base_ = ["../_base_/classification.py", "../_base_/pathfinder.py"]

epochs = 800
warm_up = 80
model = dict(
    type="ImageClassifier",
    backbone=dict(
        model_name="metala_vit_nano",
        num_classes=2,
        in_chans=1,
        img_size=(1, 1024),
        patch_size=1,
        embed_dim=128,
        depth=6,
        num_heads=2,
        mlp_ratio=1.0,
        scan="row",
    ),
    mean=(0.057,),
    std=(0.162,),
)
default_hooks = dict(checkpoint=dict(save_best=None))
train_dataloader = dict(batch_size=64, dataset=dict(images=160_000, dashes=14))
val_dataloader = dict(batch_size=64, dataset=dict(images=20_000, dashes=14))
test_dataloader = dict(batch_size=64, dataset=dict(images=20_000, dashes=14))

train_cfg = dict(by_epoch=True, max_epochs=epochs)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    clip_grad=dict(max_norm=1.0),
)
auto_scale_lr = dict(enable=True, base_batch_size=256)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=warm_up, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=warm_up, end=epochs, convert_to_iter_based=True),
]
