# What every segmentation run shares: the intersection over union, and the test of the last weights. The weights that
# were best at validation are not kept, since most datasets are tested on their validation images.
_base_ = "dense.py"

default_hooks = dict(checkpoint=dict(type="LastBestCheckpointHook", interval=1, save_best=None))
val_evaluator = dict(type="SegmentationMetric")
test_evaluator = dict(type="SegmentationMetric")
