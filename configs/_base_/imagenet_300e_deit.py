# DeiT's recipe (arXiv 2012.12877), by which most backbones of its size are compared: batch 1024, 300 epochs,
# rate 1e-3 (5e-4 for 512 images), five epochs of warm-up, and with each model mixup, cutmix, smoothing and drop path.
# DeiT also draws a third of the images three times each in an epoch: set train_dataloader.sampler.repeats=3 for that.
epochs = 300

train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=5)
auto_scale_lr = dict(enable=True, base_batch_size=1024)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-2, by_epoch=True, begin=5, end=epochs, convert_to_iter_based=True),
]
