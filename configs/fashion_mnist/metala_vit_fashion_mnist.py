"""MetaLA-ViT, width 64, depth 4, on Fashion-MNIST: 28x28, patches of 4, 49 tokens.

Command:  python tools/train.py configs/fashion_mnist/metala_vit_fashion_mnist.py
Smaller:  ... --cfg-options train_dataloader.dataset.subset=10000
Cost:     three minutes on one core for 10 000 training images; not run on all of them
Accuracy: 80.85, 78.96 and 79.33 percent of the test split with 10 000 training images (seeds 0, 1, 2)
"""

_base_ = ["../_base_/classification.py", "../_base_/fashion_mnist.py"]

model = dict(
    type="ImageClassifier",
    backbone=dict(
        model_name="metala_vit_nano",
        num_classes=10,
        in_chans=1,
        img_size=28,
        patch_size=4,
        embed_dim=64,
        depth=4,
        num_heads=1,
        drop_path_rate=0.05,
    ),
    mean=(0.2860,),
    std=(0.3530,),
    label_smoothing=0.1,
)
