# Fashion-MNIST, 28x28 grey: 55 000 train, 5 000 val, 10 000 test, or 60 000 and 10 000 where a config says holdout=0.
# One recipe for every model.
epochs = 5
batch_size = 128

augmentation = dict(
    type="Albumentations",
    transforms=[
        dict(type="PadIfNeeded", min_height=32, min_width=32),
        dict(type="RandomCrop", height=28, width=28),
        dict(type="HorizontalFlip", p=0.5),
    ],
)
evaluation = dict(type="EvalTransform", img_size=28, crop_ratio=1.0)
loader = dict(
    batch_size=batch_size,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_images"),
)
dataset = dict(type="FashionMNIST", root="data/fashion_mnist", transform=evaluation)
train_dataloader = dict(
    loader,
    dataset=dict(dataset, split="train", transform=augmentation),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, dataset=dict(dataset, split="val"))
test_dataloader = dict(loader, dataset=dict(dataset, split="test"))

train_cfg = dict(by_epoch=True, max_epochs=epochs)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]
