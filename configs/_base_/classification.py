# What every classification run shares. A config adds model, data, optimiser and length.
custom_imports = dict(imports=["metala_vision", "metala_vision.data", "metala_vision.engine"])

default_hooks = dict(
    logger=dict(type="StepLoggerHook", interval=20),
    unreadable=dict(type="UnreadableImagesHook", max_share=0.01),
    checkpoint=dict(type="LastBestCheckpointHook", interval=1, save_best="top1"),
)
visualizer = dict(
    type="Visualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
val_evaluator = dict(type="ClassificationMetric")
test_evaluator = dict(type="ClassificationMetric")
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=0)
