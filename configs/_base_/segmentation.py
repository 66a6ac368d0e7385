# What every segmentation run shares: the intersection over union, and the last weights, not those that were best at
# validation, since most sets are tested on it too.
_base_ = "dense.py"

default_hooks = dict(checkpoint=dict(type="LastBestCheckpointHook", interval=1, save_best=None))
val_evaluator = dict(type="SegmentationMetric")
test_evaluator = dict(type="SegmentationMetric")
