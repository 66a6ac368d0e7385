# MetaLA's recipe (arXiv 2411.10741, appendix A4): "following DeiT", batch 2048, 300 epochs, peak rate 2.4e-3 with a
# cosine, AdamW with betas 0.9 and 0.98, weight decay 0.05, neither mixup nor cutmix. What the paper leaves open
# is as in DeiT (RandAugment, erasing, label smoothing, drop path) or as in HGRN's code (ten epochs of warm-up, clipping
# at 5).
epochs = 300

train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=5)
auto_scale_lr = dict(enable=True, base_batch_size=2048)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2.4e-3, betas=(0.9, 0.98), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=10, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min_ratio=5e-3, by_epoch=True, begin=10, end=epochs, convert_to_iter_based=True),
]
