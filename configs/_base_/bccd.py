# Blood cells (BCCD) in VOC's form: photographs of 640x480 pixels with boxes of red and white cells and platelets,
# 205 to train on and 87 for validation.
root = "data/bccd"

loader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_boxes"),
)
dataset = dict(type="VOCDetection", root=root, classes=("RBC", "WBC", "Platelets"))
augmentation = dict(
    type="BoxTransform",
    transforms=[
        dict(type="HorizontalFlip", p=0.5),
        dict(type="VerticalFlip", p=0.5),
        dict(type="ColorJitter", brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02, p=0.8),
    ],
)
train_dataloader = dict(
    loader,
    dataset=dict(dataset, split="train", transform=augmentation),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, dataset=dict(dataset, split="val"))
test_dataloader = dict(loader, dataset=dict(dataset, split="val"))

epochs = 20
model = dict(
    type="ImageDetector",
    kind="faster_rcnn",
    num_classes=3,
    out_channels=128,
    strides=(8, 16, 32),
    anchor_scale=2.5,  # sides of 20, 40 and 80 pixels
    min_size=240,
    max_size=320,
    rpn_batch_size_per_image=128,
    rpn_pre_nms_top_n_train=1000,
    rpn_post_nms_top_n_train=500,
    rpn_pre_nms_top_n_test=500,
    rpn_post_nms_top_n_test=300,
    box_batch_size_per_image=128,
)
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=5)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]
