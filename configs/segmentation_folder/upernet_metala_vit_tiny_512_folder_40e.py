"""UPerNet on MetaLA-ViT tiny, on your own images with masks, in crops of 512 pixels.

Command: python tools/train.py configs/segmentation_folder/upernet_metala_vit_tiny_512_folder_40e.py \\
             --data-root FOLDER --num-classes N
To start from trained weights, which few images need: add --cfg-options model.init_from=CHECKPOINT
Cost and accuracy: those of your folder; add --dry-run for an estimate
"""

_base_ = ["../_base_/segmentation.py", "../_base_/segmentation_folder.py"]

model = dict(kind="upernet", backbone=dict(model_name="metala_vit_tiny", drop_path_rate=0.1))
