# Your own images with masks: images/ and masks/ have files of the same names, in a folder for each split or without.
root = "data/masks"
epochs = 40
size = 512

loader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_masks"),
)
dataset = dict(type="MaskFolder", root=root, classes=2)
augmentation = dict(
    type="MaskTransform",
    transforms=[
        dict(type="SmallestMaxSize", max_size=size),
        dict(type="RandomScale", scale_limit=(-0.5, 1.0), p=1.0),
        dict(type="RandomCrop", height=size, width=size, pad_if_needed=True, fill_mask=255),
        dict(type="HorizontalFlip", p=0.5),
        dict(type="ColorJitter", brightness=0.125, contrast=0.5, saturation=0.5, hue=0.07, p=0.8),
    ],
)
train_dataloader = dict(
    loader,
    drop_last=True,
    dataset=dict(dataset, split="train", transform=augmentation),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, batch_size=1, dataset=dict(dataset, split="val"))
test_dataloader = dict(loader, batch_size=1, dataset=dict(dataset, split="test"))

model = dict(type="ImageSegmenter", num_classes=2, short_side=size, window=size)
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=4)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=3e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]
