"""UPerNet on MetaLA-ViT tiny, on ADE20K at 512 pixels: 160 000 steps of 16 images are 127 epochs.

Command:  torchrun --nproc-per-node 8 tools/train.py configs/ade20k/upernet_metala_vit_tiny_512_ade20k_127e.py \\
              --launcher pytorch --amp --data-root ADEChallengeData2016 --cfg-options model.init_from=CHECKPOINT
Cost and accuracy: nobody has run it yet; add --dry-run for an estimate of its time and memory
"""

_base_ = ["../_base_/segmentation.py", "../_base_/ade20k_127e.py"]

model = dict(
    backbone=dict(model_name="metala_vit_tiny", drop_path_rate=0.1),
    init_from="work_dirs/metala_vit_tiny_224_imagenet_300e_deit/last.pth",
)
