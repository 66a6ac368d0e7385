# What every segmentation run shares: the intersection over union, and the best checkpoint by its mean.
_base_ = "dense.py"

default_hooks = dict(checkpoint=dict(type="LastBestCheckpointHook", interval=1, save_best="mIoU"))
val_evaluator = dict(type="SegmentationMetric")
test_evaluator = dict(type="SegmentationMetric")
