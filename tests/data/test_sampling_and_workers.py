"""The traps of randomness in data loading, each shown to be real and then to be closed."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from metala_vision.data import Albumentations, EpochSampler, LabelledImages, SampleKey, collate_images

SIZE = 12


class Dots(LabelledImages):
    """Images of one bright pixel, which a random shift moves about: the shift can be read off the image."""

    def __init__(self, transform=None):
        super().__init__("train", ("a", "b"), np.arange(SIZE) % 2, transform)

    def load(self, index):
        image = np.zeros((33, 33, 1), np.uint8)
        image[16, 16] = 100 + index
        return image


class Plain(Dataset):
    """The same images drawn by bare indices: what a usual map-style dataset does."""

    def __init__(self, dots):
        self.dots = dots

    def __len__(self):
        return len(self.dots)

    def __getitem__(self, index):
        return self.dots[index]


def shift() -> Albumentations:
    return Albumentations([dict(type="Affine", translate_px=dict(x=(-15, 15), y=(-15, 15)), interpolation=0, p=1.0)])


def positions(loader: DataLoader) -> dict[int, int]:
    """Where the bright pixel of each image came to lie."""
    images = torch.cat([batch["inputs"] for batch in loader])
    flat = images.flatten(1)
    return {int(image.max()) - 100: int(image.argmax()) for image in flat}


def draw(workers: int, epochs: int = 1, persistent: bool = False, keyed: bool = True) -> list[dict[int, int]]:
    dots = Dots(shift())
    sampler = EpochSampler(dots, shuffle=True, seed=3) if keyed else None
    loader = DataLoader(
        dots if keyed else Plain(dots),
        batch_size=3,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate_images,
        persistent_workers=persistent,
        generator=torch.Generator().manual_seed(0),
    )
    result = []
    for epoch in range(epochs):
        if sampler is not None:
            sampler.set_epoch(epoch)
        result.append(positions(loader))
    return result


def test_trap_workers_augment_alike_without_seeds():
    """The trap itself: two workers walk through the same stream, so batch 1 repeats the shifts of batch 0."""
    shifts = list(draw(workers=2, keyed=False)[0].values())
    assert shifts[:3] == shifts[3:6]


def test_trap_epochs_repeat_without_seeds():
    """The trap itself: fresh workers start the same stream again at each epoch."""
    first, second = draw(workers=2, epochs=2, keyed=False)
    assert first == second


def test_workers_augment_differently():
    shifts = list(draw(workers=2)[0].values())
    assert len(set(shifts)) >= SIZE - 1


@pytest.mark.parametrize("persistent", [False, True])
def test_epochs_differ(persistent):
    first, second = draw(workers=2, epochs=2, persistent=persistent)
    assert sum(first[i] != second[i] for i in range(SIZE)) >= SIZE - 1


def test_augmentation_does_not_depend_on_workers():
    """A resumed run may have another number of workers, and must still see the same images."""
    assert draw(workers=0, epochs=2) == draw(workers=1, epochs=2) == draw(workers=2, epochs=2, persistent=True)


def test_sampler_is_a_function_of_seed_and_epoch():
    sampler = EpochSampler(range(100), seed=5)
    sampler.set_epoch(7)
    first = list(sampler)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(key.sample for key in sampler) == list(range(100))
        assert list(sampler) != first
    resumed = EpochSampler(range(100), seed=5)
    resumed.set_epoch(7)
    assert list(resumed) == first
    assert list(EpochSampler(range(100), seed=6)) != list(EpochSampler(range(100), seed=5))


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_ranks_share_the_samples(monkeypatch, size):
    """Every sample is drawn; ranks get equally many; without rounding up none is drawn twice."""
    for round_up in (True, False):
        drawn = []
        for rank in range(3):
            monkeypatch.setattr("metala_vision.data.sampling.get_dist_info", lambda rank=rank: (rank, 3))
            sampler = EpochSampler(range(size), seed=1, round_up=round_up)
            keys = list(sampler)
            assert len(keys) == len(sampler)
            drawn.append(keys)
        flat = [key.sample for keys in drawn for key in keys]
        assert set(flat) == set(range(size))
        if round_up:
            assert len({len(keys) for keys in drawn}) == 1
        else:
            assert len(flat) == size


def test_evaluation_order_is_the_dataset_order():
    assert [key.sample for key in EpochSampler(range(9), shuffle=False)] == list(range(9))


def test_same_key_same_image():
    dots = Dots(shift())
    first = dots[SampleKey(2, 99)]["image"]
    dots[SampleKey(2, 1)]
    assert torch.equal(first, dots[SampleKey(2, 99)]["image"])
