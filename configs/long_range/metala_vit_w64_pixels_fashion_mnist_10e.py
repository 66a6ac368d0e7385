"""A MetaLA of width 64 and depth 4 on Fashion-MNIST, every image read as a sequence of 784 pixels.

Command: python tools/train.py configs/long_range/metala_vit_w64_pixels_fashion_mnist_10e.py
         with another mixer --cfg-options model.backbone.mixer=ssd
Cost and accuracy: not measured yet; --dry-run estimates the time of your machine
"""

_base_ = ["../_base_/classification.py", "../_base_/fashion_mnist.py"]

epochs = 10
pixels = dict(_delete_=True, type="PixelSequence")
model = dict(
    type="ImageClassifier",
    backbone=dict(
        model_name="metala_vit_nano",
        num_classes=10,
        in_chans=1,
        img_size=(1, 784),
        patch_size=1,
        embed_dim=64,
        depth=4,
        num_heads=2,
        scan="row",
        drop_path_rate=0.05,
    ),
    mean=(0.2860,),
    std=(0.3530,),
    label_smoothing=0.1,
)
# all 60 000 images are trained on, and the last epoch's weights are tested: nothing is chosen by the test images
train_dataloader = dict(
    batch_size=64, dataset=dict(holdout=0.0, transform=dict(pixels, transform={{_base_.augmentation}}))
)
val_dataloader = dict(dataset=dict(holdout=0.0, transform=pixels))
test_dataloader = dict(dataset=dict(transform=pixels))
default_hooks = dict(checkpoint=dict(save_best=None))

train_cfg = dict(max_epochs=epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]
