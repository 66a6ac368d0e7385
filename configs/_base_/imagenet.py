# ImageNet-1k as most keep it: root/train/CLASS/IMAGE and root/val/CLASS/IMAGE. All of train is trained on; the 50 000
# images of val are the test set. Nothing is chosen by them: the result is that of the last epoch's weights.
# Crops, RandAugment and erasing are those of DeiT (arXiv 2012.12877).
root = "data/imagenet"
batch_size = 256  # of one process

model = dict(
    type="ImageClassifier",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    label_smoothing=0.1,
)
loader = dict(
    batch_size=batch_size,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_images"),
)
evaluation = dict(type="EvalTransform", img_size=224, crop_ratio=0.875)
dataset = dict(type="ImageFolder", root=root, holdout=0.0, transform=evaluation)
train_dataloader = dict(
    loader,
    dataset=dict(
        dataset,
        split="train",
        transform=dict(type="TrainTransform", img_size=224, rand_augment="rand-m9-mstd0.5-inc1", erasing=0.25),
    ),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, dataset=dict(dataset, split="val"))
test_dataloader = dict(loader, dataset=dict(dataset, split="test"))
