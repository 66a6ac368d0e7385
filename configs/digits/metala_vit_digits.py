"""MetaLA-ViT on scikit-learn's handwritten digits: 8x8 pixels, 1258 train, 180 val, 359 test images.

Command:  python tools/train.py configs/digits/metala_vit_digits.py
Cost:     a minute on 2 cores
Accuracy: 99.16, 98.33 and 99.72 percent of the test split on an AMD EPYC (seeds 0, 1, 2); on other processors sums
          are rounded in other ways, and one or two of the 359 images may be classified otherwise
"""

_base_ = "../_base_/classification.py"

epochs = 30
batch_size = 64

model = dict(
    type="ImageClassifier",
    backbone=dict(
        model_name="metala_vit_nano",
        num_classes=10,
        in_chans=1,
        img_size=8,
        patch_size=2,
        embed_dim=128,
        depth=4,
        num_heads=2,
        drop_path_rate=0.1,
    ),
    mean=(0.3053,),
    std=(0.3760,),
    label_smoothing=0.1,
)

augmentation = dict(
    type="Albumentations",
    transforms=[dict(type="Affine", translate_percent=(-0.12, 0.12), rotate=(-12, 12), scale=(0.9, 1.1), p=0.8)],
)
loader = dict(
    batch_size=batch_size,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_images"),
)
train_dataloader = dict(
    loader,
    dataset=dict(type="Digits", split="train", transform=augmentation),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(
    loader, dataset=dict(type="Digits", split="val", transform=dict(type="EvalTransform", img_size=8, crop_ratio=1.0))
)
test_dataloader = dict(
    loader, dataset=dict(type="Digits", split="test", transform=dict(type="EvalTransform", img_size=8, crop_ratio=1.0))
)

train_cfg = dict(by_epoch=True, max_epochs=epochs)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=3, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=3, end=epochs, convert_to_iter_based=True),
]
