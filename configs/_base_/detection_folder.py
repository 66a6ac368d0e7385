# Your own boxes, in COCO's form or VOC's: DetectionFolder says which layouts it knows.
root = "data/boxes"
epochs = 30

loader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_boxes"),
)
dataset = dict(type="DetectionFolder", root=root)
augmentation = dict(
    type="BoxTransform",
    transforms=[
        dict(type="HorizontalFlip", p=0.5),
        dict(type="ColorJitter", brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02, p=0.8),
    ],
)
train_dataloader = dict(
    loader,
    dataset=dict(dataset, split="train", transform=augmentation),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, dataset=dict(dataset, split="val"))
test_dataloader = dict(loader, dataset=dict(dataset, split="test"))

train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=3)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=3e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]
