# Fine-tuning at a higher resolution as DeiT does it (the command its authors give beside arXiv 2012.12877): 30 epochs,
# batch 512, a constant rate of 5e-6 after the warm-up, almost no weight decay, and the augmentation of DeiT's training.
epochs = 30

train_cfg = dict(by_epoch=True, max_epochs=epochs)
auto_scale_lr = dict(enable=True, base_batch_size=512)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-6, betas=(0.9, 0.999), weight_decay=1e-8),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.2, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="ConstantLR", factor=1.0, by_epoch=True, begin=5, end=epochs),
]
