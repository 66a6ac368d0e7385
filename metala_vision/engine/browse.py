"""A batch as the model sees it."""

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS

from metala_vision.data.masks import IGNORE
from metala_vision.errors import InputError

from .metrics.plots import plot_images
from .run.config import config_errors
from .run.options import set_num_classes
from .run.runner import VisionRunner

SPLITS = ("train", "val", "test")


def browse(config: Config, split: str, path: str | Path, images: int = 32, epoch: int = 0) -> dict:
    """Draws the first images of an epoch, augmented, mixed and with their labels, boxes or masks, as PNG.

    Args:
        config: config of a training run, with its `work_dir` set.
        split: "train", "val" or "test".
        path: path of the picture.
        images: largest number of images.
        epoch: epoch whose order and augmentation are drawn.

    Returns:
        A dict of plain values: `picture`, `images`, `shape` (of the first), `pixels` (smallest and largest value).

    Raises:
        InputError: an unknown split, or a config that does not fit its data.
    """
    if split not in SPLITS:
        raise InputError(f"--split: got {split!r}, expected one of {SPLITS}")
    if images < 1:
        raise InputError(f"--images: got {images}, expected at least 1")
    _fit_classes(config, split)
    runner = VisionRunner.from_cfg(config)
    runner.prepare()
    loader = {"train": runner.train_loop, "val": runner.val_loop, "test": runner.test_loop}[split].dataloader
    loader.batch_sampler.sampler.set_epoch(epoch)
    training = split == "train"
    pictures, seen = [], []
    for batch in loader:
        batch = runner.task.data_preprocessor(batch, training=training)
        if len(batch["inputs"]) == 0:  # none of its files can be read
            continue
        pictures += runner.task.pictures(batch, loader.dataset.classes, training)
        seen += list(batch["inputs"])
        if len(pictures) >= images:
            break
    if not pictures:
        raise InputError(f"data: no image of the {split} split can be read")
    shown, titles = zip(*pictures[:images])
    plot_images(shown, titles, path)
    return {
        "picture": str(path),
        "split": split,
        "images": len(shown),
        "shape": list(seen[0].shape),
        "pixels": [round(min(x.min().item() for x in seen), 3), round(max(x.max().item() for x in seen), 3)],
    }


def _fit_classes(config: Config, split: str) -> None:
    """Gives the model as many classes as the data have, so that nobody has to count them; its weights are not used."""
    if config.model.type == "SequenceModel":  # its vocabulary is in the config
        return
    for part in SPLITS:
        dataset = config[f"{part}_dataloader"].dataset
        if isinstance(dataset.get("classes"), int):  # of a dataset of masks, whose files do not say how many
            dataset.classes = IGNORE
    with config_errors():
        set_num_classes(config, len(DATASETS.build(config[f"{split}_dataloader"].dataset).classes))
