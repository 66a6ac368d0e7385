"""The model of an mmseg config: UPerNet on MetaLA-ViT tiny with ViTDet's pyramid, for ADE20K's 150 classes.

Take it as a _base_ beside mmseg's own dataset, schedule and runtime. Backbone and neck need mmengine alone; the rest
needs mmseg and mmcv.
"""

custom_imports = dict(imports=["metala_vision.engine.openmmlab"], allow_failed_imports=False)
default_scope = "mmseg"

norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    backbone=dict(
        type="MetaLAViT",
        arch="tiny",
        drop_path_rate=0.1,
        out_indices=-1,
        init_cfg=None,  # dict(type="Pretrained", checkpoint="work_dirs/.../last.pth")
    ),
    neck=dict(type="SimpleFeaturePyramidNeck", in_channels=192, out_channels=256),
    decode_head=dict(
        type="UPerHead",
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=256,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
