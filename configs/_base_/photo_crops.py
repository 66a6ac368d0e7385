# Which of 17 photographs does a grey crop of 128 pixels, seen at 64, come from? `tools/photo_crops.py` writes the data.
# Nothing is chosen by the test crops: the result is that of the last epoch's weights. One recipe for every model.
epochs = 12

loader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_images"),
)
evaluation = dict(type="EvalTransform", img_size=64, crop_ratio=1.0)
dataset = dict(type="ImageFolder", root="data/photo_crops", channels=1, holdout=0.0, transform=evaluation)
train_dataloader = dict(
    loader,
    dataset=dict(dataset, split="train", transform=dict(type="TrainTransform", img_size=64, scale=(0.5, 1.0))),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, dataset=dict(dataset, split="val"))
test_dataloader = dict(loader, dataset=dict(dataset, split="test"))

train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=3)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min_ratio=5e-3, by_epoch=True, begin=2, end=epochs, convert_to_iter_based=True),
]
