# Multi-query associative recall by zoology's protocol (arXiv 2312.04927): a vocabulary of 8192, two layers, AdamW with
# a decay of 0.1 and a cosine, 100 000 sequences. The protocol takes up to 64 epochs of batches of 256 and the best of
# four rates from 1e-4 to 1e-2. Here it is two epochs of batches of 64 at one rate, which a core can take. Of 20 000
# sequences a model learns by heart which answers they have, and nothing for others: see docs/tried.md.
vocab_size = 8192
tokens = 64
pairs = 4
batch_size = 64
epochs = 2

custom_imports = dict(imports=["metala_vision", "metala_vision.data", "metala_vision.engine"])

model = dict(
    type="SequenceModel",
    backbone=dict(model_name="metala_lm", vocab_size=vocab_size, embed_dim=64, depth=2, num_heads=1, mlp_ratio=3.0),
)
dataset = dict(type="AssociativeRecall", tokens=tokens, pairs=pairs, vocab_size=vocab_size)
loader = dict(
    batch_size=batch_size,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="collate_sequences"),
)
train_dataloader = dict(
    loader,
    dataset=dict(dataset, split="train", examples=100_000),
    sampler=dict(type="EpochSampler", shuffle=True),
)
val_dataloader = dict(loader, dataset=dict(dataset, split="val", examples=1000))
test_dataloader = dict(loader, dataset=dict(dataset, split="test", examples=3000))

default_hooks = dict(
    logger=dict(type="StepLoggerHook", interval=100),
    checkpoint=dict(type="LastBestCheckpointHook", interval=1, save_best=None),
)
visualizer = dict(
    type="Visualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
val_evaluator = dict(type="AnswerMetric")
test_evaluator = dict(type="AnswerMetric")
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=0)

train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=1)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2.2e-3, betas=(0.9, 0.999), weight_decay=0.1),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=0.1, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR", eta_min_ratio=1e-2, by_epoch=True, begin=0.1, end=epochs, convert_to_iter_based=True
    ),
]
