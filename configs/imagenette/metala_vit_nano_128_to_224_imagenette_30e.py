"""metala_vit_nano_160_imagenette_30e.py with a size for each batch: 128, 160, 192 or 224 pixels.

The grid that its decay is measured by stays that of 160 pixels.

Command: python tools/train.py configs/imagenette/metala_vit_nano_128_to_224_imagenette_30e.py --data-root FOLDER
Cost and accuracy: 12 epochs are in docs/results.md; 30 not run yet, --dry-run estimates the time of your machine
"""

_base_ = ["metala_vit_nano_160_imagenette_30e.py"]

train_dataloader = dict(
    batch_sampler=dict(type="MultiScaleBatchSampler", sizes=(128, 160, 192, 224), batch_size_at=160)
)
