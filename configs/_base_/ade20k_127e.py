# ADE20K's scene parsing, 150 classes, as ADEChallengeData2016 has it: the label 0 is ignored.
root = "data/ADEChallengeData2016"
epochs = 127

loader = dict(
    batch_size=2,  # of each of 8 processes
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_masks"),
)
dataset = dict(type="MaskFolder", root=root, classes=150, zero_is_ignored=True)
augmentation = dict(
    type="MaskTransform",
    transforms=[
        dict(type="SmallestMaxSize", max_size=512),
        dict(type="RandomScale", scale_limit=(-0.5, 1.0), p=1.0),
        dict(type="RandomCrop", height=512, width=512, pad_if_needed=True, fill_mask=255),
        dict(type="HorizontalFlip", p=0.5),
        dict(type="ColorJitter", brightness=0.125, contrast=0.5, saturation=0.5, hue=0.07, p=0.8),
    ],
)
train_dataloader = dict(
    loader,
    drop_last=True,
    dataset=dict(
        dataset, split="train", images="images/training", masks="annotations/training", transform=augmentation
    ),
    sampler=dict(type="EpochSampler", shuffle=True),
)
validation = dict(dataset, split="val", images="images/validation", masks="annotations/validation")
val_dataloader = dict(loader, batch_size=1, dataset=validation)
test_dataloader = dict(loader, batch_size=1, dataset=validation)

sync_bn = "torch"
model = dict(type="ImageSegmenter", kind="upernet", num_classes=150, short_side=512, window=512, stride=341)
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=10)
auto_scale_lr = dict(enable=True, base_batch_size=16)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(layer_decay=0.85),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=True, begin=0, end=epochs, convert_to_iter_based=True),
]
