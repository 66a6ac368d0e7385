"""Training at several image sizes: the options of `tools/train.py`, and whether data and model can follow them."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from torch.utils.data import DataLoader

from metala_vision.data.batch_sizes import SizedBatchSampler, check_sizes
from metala_vision.errors import InputError


def set_image_sizes(
    config: Config,
    multi_scale: Sequence[int] | None = None,
    curriculum: Sequence[int] | None = None,
    equal_tokens: bool = False,
) -> None:
    """Writes `--multi-scale`, `--curriculum` and `--equal-tokens` into the config's train_dataloader.

    Args:
        config: of a classifier.
        multi_scale: sides in pixels, one of which each batch has.
        curriculum: sides in pixels, each for an equal share of the epochs.
        equal_tokens: batches of `multi_scale` have as many tokens as one of the config's own size.

    Raises:
        InputError: options that exclude each other or do not fit the config.
    """
    if multi_scale is None and curriculum is None:
        if equal_tokens:
            raise InputError("--equal-tokens: give it with --multi-scale and its sizes")
        return
    option = "--multi-scale" if curriculum is None else "--curriculum"
    if multi_scale is not None and curriculum is not None:
        raise InputError("--curriculum: give it or --multi-scale, not both")
    check_sizes(option, (multi_scale if curriculum is None else curriculum) or ())
    loader = config.train_dataloader
    transform = loader.dataset.get("transform") or {}
    if config.model.type != "ImageClassifier":
        raise InputError(f"{option}: a {config.model.type} is trained at several sizes by settings of its own")
    if transform.get("type") != "TrainTransform":
        raise InputError(f"{option}: the train transform of the config has no img_size; use TrainTransform there")
    if curriculum is None:
        at = transform["img_size"] if equal_tokens else None
        sampler: dict[str, Any] = dict(type="MultiScaleBatchSampler", sizes=list(multi_scale or ()), batch_size_at=at)
    else:
        if equal_tokens:
            raise InputError("--equal-tokens: the epochs of a curriculum have equally many steps; leave it out")
        epochs, stages = config.train_cfg.max_epochs, len(curriculum)
        if stages > epochs:
            raise InputError(f"--curriculum: got {stages} sizes for {epochs} epochs, expected no more than epochs")
        starts = [round(i * epochs / stages) for i in range(stages)]
        sampler = dict(type="CurriculumBatchSampler", stages=list(zip(starts, curriculum)))
    loader.batch_sampler = sampler


def training_sizes(loader: DataLoader) -> tuple[int, ...]:
    """The sizes that a loader's batch sampler asks for, the smallest first; none where the transform alone decides."""
    sampler = loader.batch_sampler
    return sampler.sizes if isinstance(sampler, SizedBatchSampler) else ()
