# Imagenette at 160 pixels, patches of 16: real photographs of ten classes. Nothing is chosen by the test images: the
# result is that of the last epoch's weights. One recipe for every model: DeiT's parts (arXiv 2012.12877) at a strength
# for 30 epochs of 9469 images. At its strength for 300 epochs of ImageNet metala_vit_nano underfits: see docs/tried.md.
root = "data/imagenette"
img_size = 160
batch_size = 64
epochs = 30

model = dict(
    type="ImageClassifier",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    label_smoothing=0.1,
    mixup=dict(mixup_alpha=0.2),
)
loader = dict(
    batch_size=batch_size,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_images"),
)
evaluation = dict(type="EvalTransform", img_size=img_size, crop_ratio=1.0)
dataset = dict(type="Imagenette", root=root, transform=evaluation)
train_dataloader = dict(
    loader,
    dataset=dict(
        dataset,
        split="train",
        transform=dict(
            type="TrainTransform",
            img_size=img_size,
            scale=(0.25, 1.0),
            rand_augment="rand-m5-mstd0.5-inc1",
            erasing=0.1,
        ),
    ),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, dataset=dict(dataset, split="val"))
test_dataloader = dict(loader, dataset=dict(dataset, split="test"))

train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=5)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=3, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-2, by_epoch=True, begin=3, end=epochs, convert_to_iter_based=True),
]
