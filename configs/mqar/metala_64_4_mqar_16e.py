"""MQAR with MetaLA: sequences of 64 tokens with 4 pairs, width 64, two layers.

Command: python tools/train.py configs/mqar/metala_64_4_mqar_16e.py
         with another mixer --cfg-options model.backbone.mixer=ssd; for sequences of 128 tokens with 8 pairs
         --cfg-options {train,val,test}_dataloader.dataset.tokens=128 {train,val,test}_dataloader.dataset.pairs=8
Cost and accuracy: not measured yet; --dry-run estimates the time of your machine
"""

_base_ = ["../_base_/mqar.py"]

model = dict(backbone=dict(mixer="metala"))
