# Any folder of images with one subfolder per class, at 224 pixels: train/, val/ and test/; train/ and val/ as ImageNet
# has them; or the class folders alone.
root = "data/images"
img_size = 224
batch_size = 64

model = dict(
    type="ImageClassifier",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
loader = dict(
    batch_size=batch_size,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_images"),
)
evaluation = dict(type="EvalTransform", img_size=img_size, crop_ratio=0.9)
dataset = dict(type="ImageFolder", root=root, transform=evaluation)
train_dataloader = dict(
    loader,
    dataset=dict(dataset, split="train", transform=dict(type="TrainTransform", img_size=img_size, strength="medium")),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, dataset=dict(dataset, split="val"))
test_dataloader = dict(loader, dataset=dict(dataset, split="test"))
