# What every detection and segmentation run shares. A config adds model, data, optimiser and length.
custom_imports = dict(
    imports=[
        "metala_vision",
        "metala_vision.data",
        "metala_vision.engine",
        "metala_vision.engine.dense_models",
        "metala_vision.engine.dense_metrics",
    ]
)
default_hooks = dict(
    logger=dict(type="StepLoggerHook", interval=20),
    unreadable=dict(type="UnreadableImagesHook", max_share=0.01),
)
visualizer = dict(
    type="Visualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=0)
