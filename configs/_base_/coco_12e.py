# COCO 2017 for 12 epochs (the 1x schedule) of 16 images a step, shorter sides of 480 to 800 pixels, flips.
root = "data/coco"
epochs = 12

loader = dict(
    batch_size=2,  # of each of 8 processes
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_boxes"),
)
dataset = dict(type="CocoDetection", root=root)
augmentation = dict(type="BoxTransform", transforms=[dict(type="HorizontalFlip", p=0.5)])
train_dataloader = dict(
    loader,
    dataset=dict(dataset, split="train", transform=augmentation),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, dataset=dict(dataset, split="val"))
test_dataloader = dict(loader, dataset=dict(dataset, split="val"))

model = dict(
    type="ImageDetector",
    num_classes=80,
    min_size=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    max_size=1333,
)
train_cfg = dict(by_epoch=True, max_epochs=epochs)
auto_scale_lr = dict(enable=True, base_batch_size=16)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(layer_decay=0.8),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=500),
    dict(type="MultiStepLR", by_epoch=True, milestones=[8, 11], gamma=0.1),
]
