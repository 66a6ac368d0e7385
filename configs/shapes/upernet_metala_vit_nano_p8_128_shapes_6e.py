"""UPerNet on MetaLA-ViT nano with patches of 8 pixels, on drawn shapes of 128x128: 2000 train, 200 val, 200 test.

Command: python tools/train.py configs/shapes/upernet_metala_vit_nano_p8_128_shapes_6e.py
Measured before there was a decay_bias (with model.backbone.decay_bias=False; seed 0, 2 cores of an Intel
Xeon): mIoU 0.897 on the test images, in 6 min 35 s.
"""

_base_ = ["../_base_/segmentation.py", "../_base_/shapes.py"]

loader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_masks"),
)
augmentation = dict(
    type="MaskTransform", transforms=[dict(type="HorizontalFlip", p=0.5), dict(type="VerticalFlip", p=0.5)]
)
train_dataloader = dict(
    loader,
    dataset=dict(type="ShapesSegmentation", split="train", images=2000, transform=augmentation),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, dataset=dict(type="ShapesSegmentation", split="val", images=200))
test_dataloader = dict(loader, dataset=dict(type="ShapesSegmentation", split="test", images=200))

default_hooks = dict(checkpoint=dict(save_best="mIoU"))
model = dict(
    type="ImageSegmenter",
    kind="upernet",
    backbone=dict(model_name="metala_vit_nano", img_size=128, patch_size=8),
    num_classes=4,
    out_channels=64,
    decoder_channels=64,
)
