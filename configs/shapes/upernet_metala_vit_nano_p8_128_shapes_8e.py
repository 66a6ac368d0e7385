"""UPerNet on MetaLA-ViT nano with patches of 8 pixels, on drawn shapes of 128x128: 1000 train, 200 val, 200 test.

Command: python tools/train.py configs/shapes/upernet_metala_vit_nano_p8_128_shapes_8e.py
"""

_base_ = "../_base_/segmentation.py"

epochs = 8
loader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_masks"),
)
augmentation = dict(
    type="MaskTransform", transforms=[dict(type="HorizontalFlip", p=0.5), dict(type="VerticalFlip", p=0.5)]
)
train_dataloader = dict(
    loader,
    dataset=dict(type="ShapesSegmentation", split="train", images=1000, transform=augmentation),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, dataset=dict(type="ShapesSegmentation", split="val", images=200))
test_dataloader = dict(loader, dataset=dict(type="ShapesSegmentation", split="test", images=200))

model = dict(
    type="ImageSegmenter",
    kind="upernet",
    backbone=dict(model_name="metala_vit_nano", patch_size=8),
    num_classes=4,
    out_channels=64,
    decoder_channels=64,
)
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=4)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]
