"""Order of the samples and the randomness of each, as functions of (seed, epoch) alone.

The sampler hands every sample a seed of its own, so that augmentation does not depend on the number of workers, on
which worker draws a sample, or on where an interrupted run was resumed; and differs between samples, epochs and ranks.
"""

from collections.abc import Iterator, Sized
from typing import NamedTuple

import numpy as np
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from metala_vision.errors import InputError


class SampleKey(NamedTuple):
    """What the sampler yields and a dataset's `__getitem__` takes: which sample, and the seed of its augmentation.

    `img_size` is the side of the image to make of it; None leaves that to the dataset's transform.
    """

    sample: int
    seed: int
    img_size: int | None = None


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler):
    """Yields a `SampleKey` for each sample of this rank.

    Args:
        dataset: anything with a length.
        shuffle: a new permutation each epoch, or the order of the dataset.
        seed: of permutations and samples; None is 0.
        round_up: repeat the first samples so that every rank gets equally many. None is the value of `shuffle`: in
            training every rank must take as many steps, in evaluation no image may count twice.
        repeats: how often an epoch has each of its samples, every time with another augmentation and, with several
            ranks, on another one. It has correspondingly fewer samples: repeated augmentation (arXiv 1902.05509), for
            which DeiT uses 3.

    Raises:
        InputError: fewer than one repeat, or repeats without shuffling.
    """

    def __init__(
        self,
        dataset: Sized,
        shuffle: bool = True,
        seed: int | None = None,
        round_up: bool | None = None,
        repeats: int = 1,
    ):
        if repeats < 1 or (repeats > 1 and not shuffle):
            raise InputError(
                f"sampler: repeats is {repeats!r} with shuffle={shuffle}, expected 1, or more with shuffle"
            )
        self.rank, self.world_size = get_dist_info()
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = 0 if seed is None else seed
        self.round_up = shuffle if round_up is None else round_up
        self.repeats = repeats
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch by mmengine's DistSamplerSeedHook."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[SampleKey]:
        size = len(self.dataset)
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(size) if self.shuffle else np.arange(size)
        seeds = rng.integers(0, 2**32, size)[order]
        order, seeds = (np.repeat(values, self.repeats)[:size] for values in (order, seeds))
        seeds = (seeds + np.arange(size) % self.repeats) % 2**32  # the copies of a sample lie side by side
        total = -(-size // self.world_size) * self.world_size if self.round_up else size
        mine = slice(self.rank, None, self.world_size)
        order, seeds = (np.resize(values, total)[mine] for values in (order, seeds))
        return iter([SampleKey(int(i), int(seed)) for i, seed in zip(order, seeds)])

    def __len__(self) -> int:
        size = len(self.dataset)
        return -(-size // self.world_size) if self.round_up else len(range(self.rank, size, self.world_size))
