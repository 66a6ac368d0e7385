# What every detection run shares: COCO's metric, and the last weights, not those that were best at validation, since
# most sets are tested on it too.
_base_ = "dense.py"

default_hooks = dict(checkpoint=dict(type="LastBestCheckpointHook", interval=1, save_best=None))
val_evaluator = dict(type="CocoMetric")
test_evaluator = dict(type="CocoMetric")
