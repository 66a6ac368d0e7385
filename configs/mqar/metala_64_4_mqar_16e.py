"""MQAR with MetaLA: sequences of 64 tokens with 4 pairs, width 64, two layers.

Command: python tools/train.py configs/mqar/metala_64_4_mqar_16e.py
         python tools/train.py configs/mqar/metala_64_4_mqar_16e.py --cfg-options model.backbone.mixer=ssd
Cost and accuracy: not measured yet; --dry-run estimates the time of your machine
"""

_base_ = ["../_base_/mqar.py"]

model = dict(backbone=dict(mixer="metala"))
