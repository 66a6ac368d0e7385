# Pathfinder at 32 x 32, every picture read as a sequence of 1024 pixels.
dataset = dict(type="Pathfinder", size=32, dashes=6, transform=dict(type="PixelSequence"))
loader = dict(
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_images"),
)
train_dataloader = dict(loader, dataset=dict(dataset, split="train"), sampler=dict(type="EpochSampler", shuffle=True))
val_dataloader = dict(loader, dataset=dict(dataset, split="val"))
test_dataloader = dict(loader, dataset=dict(dataset, split="test"))
