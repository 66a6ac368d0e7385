# Fine-tuning at a higher resolution as DeiT does it (arXiv 2012.12877): 30 epochs, batch 512, a small rate,
# almost no weight decay; RandAugment and erasing stay, mixup does not.
epochs = 30

train_cfg = dict(by_epoch=True, max_epochs=epochs)
auto_scale_lr = dict(enable=True, base_batch_size=512)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-5, betas=(0.9, 0.999), weight_decay=1e-8),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min_ratio=0.1, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]
