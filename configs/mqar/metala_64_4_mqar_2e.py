"""MQAR with MetaLA: sequences of 64 tokens with 4 pairs, width 64, two layers.

Command: python tools/train.py configs/mqar/metala_64_4_mqar_2e.py
         with another mixer --cfg-options model.backbone.mixer=ssd; for sequences of 128 tokens with 8 pairs
         --cfg-options {train,val,test}_dataloader.dataset.tokens=128 {train,val,test}_dataloader.dataset.pairs=8
Cost and accuracy: 12 minutes on one busy core of an AMD EPYC (Zen 3); 25.4 percent of the answers are right (seed 0),
as by guessing among the four values of a sequence. A larger state learns it: with model.backbone.embed_dim=128 90.0
percent of the validation's answers are right after the first epoch
"""

_base_ = ["../_base_/mqar.py"]

model = dict(backbone=dict(mixer="metala"))
