"""MetaLA-ViT tiny at 224 pixels on a folder of images with one subfolder per class.

The folder may hold train/, val/ and test/; train/ and val/ as ImageNet has them; or the class folders alone.

Command:  python tools/train.py configs/imagefolder/metala_vit_tiny_224_folder_100e.py \
              --data-root FOLDER --cfg-options model.backbone.num_classes=N
Cost and accuracy: those of your folder; not measured on a public one.
"""

_base_ = "../_base_/classification.py"

root = "data/images"
num_classes = 1000
epochs = 100

img_size = 224
batch_size = 64
num_workers = 4

model = dict(
    type="ImageClassifier",
    backbone=dict(model_name="metala_vit_tiny", num_classes=num_classes, drop_path_rate=0.1),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    label_smoothing=0.1,
)

augmentation = dict(
    type="TrainTransform",
    img_size=img_size,
    extra=[dict(type="ColorJitter", brightness=0.3, contrast=0.3, saturation=0.3, hue=0.0, p=0.8)],
)
evaluation = dict(type="EvalTransform", img_size=img_size, crop_ratio=0.9)
loader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_images"),
)
train_dataloader = dict(
    loader,
    dataset=dict(type="ImageFolder", root=root, split="train", transform=augmentation),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, dataset=dict(type="ImageFolder", root=root, split="val", transform=evaluation))
test_dataloader = dict(loader, dataset=dict(type="ImageFolder", root=root, split="test", transform=evaluation))

train_cfg = dict(by_epoch=True, max_epochs=epochs)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=5, end=epochs, convert_to_iter_based=True),
]
