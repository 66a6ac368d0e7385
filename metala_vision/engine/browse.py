"""A batch as the model sees it."""

from pathlib import Path

import torch
from mmengine.config import Config

from metala_vision.errors import InputError

from .classifier import ImageClassifier
from .plots import plot_images
from .runner import VisionRunner

SPLITS = ("train", "val", "test")


def browse(config: Config, split: str, path: str | Path, images: int = 32, epoch: int = 0) -> dict:
    """Draws the first images of an epoch, augmented, mixed and with their labels, as PNG.

    Args:
        config: of a training run, with its `work_dir` set.
        split: "train", "val" or "test".
        path: of the picture.
        images: how many, at most.
        epoch: whose order and augmentation.

    Returns:
        A dict of plain values: `picture`, `images`, `shape`, `pixels` (smallest and largest value that the model gets).

    Raises:
        InputError: an unknown split, or a config that does not fit its data.
    """
    if split not in SPLITS:
        raise InputError(f"--split: got {split!r}, expected one of {SPLITS}")
    if images < 1:
        raise InputError(f"--images: got {images}, expected at least 1")
    runner = VisionRunner.from_cfg(config)
    if not isinstance(runner.task, ImageClassifier):
        raise InputError("config: it is of a detector or a segmenter, and only labelled images can be browsed")
    runner.prepare()
    loader = {"train": runner.train_loop, "val": runner.val_loop, "test": runner.test_loop}[split].dataloader
    loader.sampler.set_epoch(epoch)
    classifier, classes = runner.task, loader.dataset.classes
    seen, titles, count = [], [], 0
    for batch in loader:
        batch = classifier.data_preprocessor(batch, training=split == "train")
        pixels, labels = batch["inputs"], batch["labels"]
        if len(pixels) == 0:
            continue
        shares = torch.nn.functional.one_hot(labels, len(classes)).float()
        if split == "train" and classifier.mixup is not None:
            pixels, shares = classifier.mixup(pixels, labels)
        seen.append(pixels)
        titles += [_title(row, classes) for row in shares.cpu()]
        count += len(pixels)
        if count >= images:
            break
    if not seen:
        raise InputError(f"data: no image of the {split} split can be read")
    pixels = torch.cat(seen)[:images]
    normalisation = classifier.data_preprocessor
    plot_images((pixels * normalisation.std + normalisation.mean).cpu().numpy(), titles[:images], path)
    return {
        "picture": str(path),
        "split": split,
        "images": len(pixels),
        "shape": list(pixels.shape[1:]),
        "pixels": [round(pixels.min().item(), 3), round(pixels.max().item(), 3)],
    }


def _title(shares: torch.Tensor, classes: tuple[str, ...]) -> str:
    """The class, or the two classes of a mixed image with their shares."""
    top = shares.topk(min(2, len(classes)))
    first, *second = [(classes[i], share) for i, share in zip(top.indices.tolist(), top.values.tolist())]
    if not second or second[0][1] < 0.02:
        return first[0]
    return f"{first[0]} {100 * first[1]:.0f} %\n{second[0][0]} {100 * second[0][1]:.0f} %"
