# What every detection run shares: COCO's metric, and the best checkpoint by its mAP.
_base_ = "dense.py"

default_hooks = dict(checkpoint=dict(type="LastBestCheckpointHook", interval=1, save_best="mAP"))
val_evaluator = dict(type="CocoMetric")
test_evaluator = dict(type="CocoMetric")
