"""Training at several image sizes: which sizes an epoch has, and the images that are made for them."""

import itertools
from collections import Counter

import pytest
import torch

from metala_vision.data import (
    Albumentations,
    CurriculumBatchSampler,
    Digits,
    EpochSampler,
    MultiScaleBatchSampler,
    SampleKey,
    TrainTransform,
)
from metala_vision.errors import InputError


def batches(sampler, epoch: int) -> list[list[SampleKey]]:
    sampler.sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("at", [None, 160])
@pytest.mark.parametrize("samples", [1, 63, 64, 1000, 9469])
@pytest.mark.parametrize("sizes", [(128, 160, 192, 224), (96,), (64, 64, 320)])
def test_every_sample_once_an_epoch(sizes, samples, at):
    """Catches samples lost or doubled between batches of different lengths, and epochs of different lengths."""
    sampler = MultiScaleBatchSampler(EpochSampler(range(samples), seed=3), 64, sizes, at)
    orders = []
    for epoch in range(4):
        found = batches(sampler, epoch)
        assert len(found) == len(sampler)
        keys = [key for batch in found for key in batch]
        assert sorted(key.sample for key in keys) == list(range(samples))
        assert [key[:2] for key in keys] == [key[:2] for key in sampler.sampler], "in the order of the sampler"
        assert all(len({key.img_size for key in batch}) == 1 for batch in found)
        orders.append([batch[0].img_size for batch in found])
    counts = [Counter(order) for order in orders]
    assert all(count == counts[0] for count in counts)
    if samples == 9469:
        asked = Counter(sizes)
        shares = [counts[0][size] / asked[size] for size in asked]
        assert max(shares) - min(shares) <= 1, "equally often"
        assert len(set(sizes)) == 1 or orders[0] != orders[1], "an order of its own"
    assert sampler.steps(4) == dict(sum(counts, Counter()))


def test_equal_tokens():
    sampler = MultiScaleBatchSampler(EpochSampler(range(100_000)), 64, (128, 160, 320), 160)
    lengths = {}
    for batch in batches(sampler, 0):
        lengths.setdefault(batch[0].img_size, []).append(len(batch))
    usual = {size: max(counts) for size, counts in lengths.items()}
    assert usual == {128: 100, 160: 64, 320: 16} == {size: sampler.full_batch(size) for size in usual}
    assert sum(min(counts) < max(counts) for counts in lengths.values()) <= 1, "one batch at most is the rest"


def test_all_ranks_have_the_same_sizes(monkeypatch):
    """Catches a rank that computes larger images than the others, which all wait for it."""
    orders, samples = [], []
    for rank in range(3):
        monkeypatch.setattr("metala_vision.data.sampling.get_dist_info", lambda rank=rank: (rank, 3))
        found = batches(MultiScaleBatchSampler(EpochSampler(range(1000), seed=1), 16, (8, 16, 24), 16), 2)
        orders.append([(batch[0].img_size, len(batch)) for batch in found])
        samples += [key.sample for batch in found for key in batch]
    assert orders[0] == orders[1] == orders[2]
    assert set(samples) == set(range(1000))


def test_curriculum():
    sampler = CurriculumBatchSampler(EpochSampler(range(100)), 32, [(0, 96), (2, 128), (5, 160)])
    seen = [{batch[0].img_size for batch in batches(sampler, epoch)} for epoch in range(7)]
    assert seen == [{96}, {96}, {128}, {128}, {128}, {160}, {160}]
    assert [len(batch) for batch in batches(sampler, 6)] == [32, 32, 32, 4]
    assert len(sampler) == 4
    assert sampler.steps(7) == {96: 8, 128: 12, 160: 8}
    assert sampler.sizes == (96, 128, 160)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda s: MultiScaleBatchSampler(s, 4, []), r"sizes: got \[\], expected sides of images"),
        (lambda s: MultiScaleBatchSampler(s, 4, [128, 0]), r"sizes: got \[128, 0\]"),
        (lambda s: MultiScaleBatchSampler(s, 4, [128.0]), r"sizes: got \[128.0\]"),
        (lambda s: MultiScaleBatchSampler(s, 4, [128], -1), r"batch_size_at: got \[-1\]"),
        (lambda s: MultiScaleBatchSampler(range(9), 4, [128]), "sampler is a range, expected an EpochSampler"),
        (lambda s: CurriculumBatchSampler(s, 4, [(1, 96)]), r"stages begin with the epochs \[1\], expected 0"),
        (lambda s: CurriculumBatchSampler(s, 4, [(0, 96), (0, 128)]), r"begin with the epochs \[0, 0\]"),
        (lambda s: CurriculumBatchSampler(s, 4, []), r"begin with the epochs \[\]"),
        (lambda s: CurriculumBatchSampler(s, 4, [(0, -3)]), r"stages: got \[-3\]"),
    ],
)
def test_arguments(build, message):
    with pytest.raises(InputError, match=message):
        build(EpochSampler(range(9)))


def test_images_of_the_size_asked_for():
    """They are those of a transform of that size, augmentation and seed included."""
    options = dict(strength="strong", erasing=0.5, scale=(0.5, 1.0))
    data = Digits("train", transform=TrainTransform(8, **options))
    for size, seed in itertools.product((8, 12, 17), (1, 2)):
        other = Digits("train", transform=TrainTransform(size, **options))
        image = data[SampleKey(5, seed, size)]["image"]
        assert image.shape[-2:] == (size, size)
        assert torch.equal(image, other[SampleKey(5, seed)]["image"])
    assert data[SampleKey(5, 1)]["image"].shape[-2:] == (8, 8)


def test_rand_augment_shifts_by_shares_of_the_size():
    """Catches a policy that goes on with the shifts of the first size."""
    transform = TrainTransform(64, rand_augment="rand-m9-mstd0.5-inc1")
    constants = []
    for size in (64, 256):
        (augment,) = [t for t in transform.at(size).compose.transforms if type(t).__name__ == "TimmRandAugment"]
        constants.append(augment.augment.ops[0].hparams["translate_const"])
    assert constants == [int(0.45 * 64), int(0.45 * 256)]


def test_transforms_without_a_size_say_so():
    data = Digits("train", transform=Albumentations([dict(type="HorizontalFlip")]))
    with pytest.raises(InputError, match="Albumentations has no img_size to change; use TrainTransform"):
        data[SampleKey(0, 1, 12)]
