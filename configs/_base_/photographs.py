# Any folder of images, of any layout and without labels, at 224 pixels: a linearized ViT learns from its teacher there.
root = "data/photographs"
img_size = 224
batch_size = 16

custom_imports = dict(imports=["metala_vision", "metala_vision.data", "metala_vision.engine"])

model = dict(type="Linearization", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
loader = dict(
    batch_size=batch_size,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_images"),
)
evaluation = dict(type="EvalTransform", img_size=img_size, crop_ratio=1.0)
dataset = dict(type="Photographs", root=root, transform=evaluation)
train_dataloader = dict(
    loader,
    dataset=dict(dataset, split="train", transform=dict(type="TrainTransform", img_size=img_size, scale=(0.4, 1.0))),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, dataset=dict(dataset, split="val"))
test_dataloader = dict(loader, dataset=dict(dataset, split="test"))

default_hooks = dict(
    logger=dict(type="StepLoggerHook", interval=20),
    unreadable=dict(type="UnreadableImagesHook", max_share=0.01),
    checkpoint=dict(type="LastBestCheckpointHook", interval=1, save_best=None),
)
visualizer = dict(
    type="Visualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
val_evaluator = dict(type="LikenessMetric")
test_evaluator = dict(type="LikenessMetric")
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=0)
