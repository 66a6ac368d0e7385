"""Which size the images of each training batch have: a function of (seed, epoch, batch) alone, equal on all ranks."""

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from mmengine.registry import DATA_SAMPLERS

from metala_vision.errors import InputError

from .sampling import EpochSampler, SampleKey


class Batch(NamedTuple):
    """The side of its square images in pixels, and how many they are."""

    img_size: int
    images: int


class SizedBatchSampler:
    """Cuts the samples of an `EpochSampler` into batches, and tells each sample the size of its batch's images.

    A subclass says in `plan` which batches an epoch has. All epochs have equally many, since schedules count steps.

    Args:
        sampler: gives the samples of this rank.
        batch_size: images of a batch.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int):
        if not isinstance(sampler, EpochSampler):
            raise InputError(f"batch_sampler: sampler is a {type(sampler).__name__}, expected an EpochSampler")
        self.sampler, self.batch_size = sampler, batch_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every size that a batch may have, the smallest first."""
        raise NotImplementedError

    def plan(self, epoch: int) -> list[Batch]:
        """The batches of an epoch in their order."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[list[SampleKey]]:
        keys = iter(self.sampler)
        for size, images in self.plan(self.sampler.epoch):
            yield [key._replace(img_size=size) for key in itertools.islice(keys, images)]

    def __len__(self) -> int:
        return self._batches

    @functools.cached_property
    def _batches(self) -> int:
        return len(self.plan(0))  # milliseconds for ImageNet, and hooks ask for it in every step

    def steps(self, epochs: int) -> dict[int, int]:
        """How many batches of each size there are in so many epochs."""
        return dict(sorted(Counter(batch.img_size for epoch in range(epochs) for batch in self.plan(epoch)).items()))

    def full_batch(self, img_size: int) -> int:
        """How many images a batch of this size has, where it is not the last of an epoch."""
        return self.batch_size


@DATA_SAMPLERS.register_module()
class MultiScaleBatchSampler(SizedBatchSampler):
    """A size for each batch. Every epoch has each size equally often, in an order of its own.

    Args:
        sampler: gives the samples of this rank.
        batch_size: images of a batch.
        sizes: sides in pixels; one that is given twice comes up twice as often.
        batch_size_at: the side for which `batch_size` is meant: batches of other sizes have fewer or more images, for
            as many tokens. None: `batch_size` holds for all.

    Raises:
        InputError: no sizes, or sizes that are not positive integers.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, sizes: Sequence[int], batch_size_at: int | None = None):
        super().__init__(sampler, batch_size)
        check_sizes("sizes", sizes)
        if batch_size_at is not None:
            check_sizes("batch_size_at", [batch_size_at])
        self.given, self.batch_size_at = tuple(sizes), batch_size_at

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.given)))

    def full_batch(self, img_size: int) -> int:
        if self.batch_size_at is None:
            return self.batch_size
        return max(1, round(self.batch_size * (self.batch_size_at / img_size) ** 2))

    def plan(self, epoch: int) -> list[Batch]:
        batches, left = [], len(self.sampler)
        for size in itertools.cycle(self.given):
            if left <= 0:
                break
            batches.append(Batch(size, min(left, self.full_batch(size))))
            left -= batches[-1].images
        # The 1 makes it another stream than that of the samples' order
        order = np.random.default_rng([self.sampler.seed, epoch, 1]).permutation(len(batches))
        return [batches[i] for i in order]


@DATA_SAMPLERS.register_module()
class CurriculumBatchSampler(SizedBatchSampler):
    """A size for each stage of the training: small images first, which cost less, then larger ones.

    Args:
        sampler: gives the samples of this rank.
        batch_size: images of a batch.
        stages: (first epoch, side in pixels) of each stage, the first of which begins with epoch 0.

    Raises:
        InputError: stages that do not begin with epoch 0 or do not follow each other; sizes as above.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, stages: Sequence[tuple[int, int]]):
        super().__init__(sampler, batch_size)
        starts = [start for start, _ in stages]
        if starts[:1] != [0] or any(b <= a for a, b in itertools.pairwise(starts)):
            raise InputError(f"stages: the stages begin with the epochs {starts}, expected 0 and then later ones each")
        check_sizes("stages", [size for _, size in stages])
        self.stages = [tuple(stage) for stage in stages]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(sorted({size for _, size in self.stages}))

    def plan(self, epoch: int) -> list[Batch]:
        size = [size for start, size in self.stages if start <= epoch][-1]
        samples = len(self.sampler)
        return [Batch(size, min(self.batch_size, samples - i)) for i in range(0, samples, self.batch_size)]


def check_sizes(name: str, sizes: Sequence[int]) -> None:
    """Raises InputError for no sizes, and for any that is not a positive integer; `name` is that of the setting."""
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise InputError(f"{name}: got {list(sizes)}, expected sides of images in pixels, such as 128 160 224")
