# InLine's recipe (arXiv 2412.06590, and its released code): DeiT's with 20 epochs of warm-up and gradients clipped at
# 5; rate 5e-4 for 512 images, 300 epochs, and with each model mixup, cutmix, smoothing and drop path.
epochs = 300

train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=5)
auto_scale_lr = dict(enable=True, base_batch_size=512)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-2, by_epoch=True, begin=20, end=epochs, convert_to_iter_based=True),
]
