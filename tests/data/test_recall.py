"""Sequences of associative recall: every rule of the protocol, by reading the sequences and not the generator."""

import numpy as np
import pytest
import torch

from metala_vision.data import AssociativeRecall, SampleKey, collate_sequences
from metala_vision.errors import InputError

VOCABULARY = 128


@pytest.mark.parametrize(("tokens", "pairs"), [(64, 4), (40, 10), (16, 1), (256, 16)])
def test_every_answer_is_in_the_sequence(tokens, pairs):
    """Each key is followed by its value, stands once more behind all pairs, and is asked for that value there."""
    data = AssociativeRecall("train", tokens, pairs, examples=50, vocab_size=VOCABULARY)
    for sample in (data[i] for i in range(len(data))):
        sequence, labels = sample["tokens"].tolist(), sample["labels"].tolist()
        keys, values = sequence[0 : 2 * pairs : 2], sequence[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(1 <= key < VOCABULARY // 2 <= value < VOCABULARY for key, value in zip(keys, values))
        asked = [place for place, label in enumerate(labels) if label != -100]
        assert len(asked) == pairs
        assert sorted(sequence[place] for place in asked) == sorted(keys)
        for place in asked:
            assert place >= 2 * pairs
            assert place % 2 == 0
            assert labels[place] == values[keys.index(sequence[place])]
        assert len(sequence) == tokens
        assert 0 <= min(sequence) <= max(sequence) < VOCABULARY


def test_distances_follow_the_power_law():
    """Catches a uniform choice: with an exponent of 0.01 distance d is asked about in proportion to d^-0.99."""
    data = AssociativeRecall("train", 64, 1, examples=4000, vocab_size=VOCABULARY)
    places = np.array([int((data[i]["labels"] != -100).nonzero()) for i in range(len(data))])
    counts = np.bincount((places - 2) // 2, minlength=31)
    weights = np.arange(1, 32) ** -0.99
    expected = 4000 * weights / weights.sum()
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_places_between_are_random():
    """Catches a filling that is always the same token, by which the places that ask would be known."""
    data = AssociativeRecall("train", 64, 4, examples=200, vocab_size=VOCABULARY)
    samples = [data[i] for i in range(len(data))]
    rest = torch.cat([s["tokens"][8:][s["labels"][8:] == -100] for s in samples])
    assert torch.bincount(rest, minlength=VOCABULARY).min() > 20


def test_sequences_are_a_function_of_their_number():
    """Catches sequences that depend on the order of reading or the seed of an epoch, and splits that are the same."""
    data = AssociativeRecall("train", examples=10)
    backwards = [data[i] for i in reversed(range(10))][::-1]
    assert all(torch.equal(data[i]["tokens"], backwards[i]["tokens"]) for i in range(10))
    assert torch.equal(data[3]["tokens"], data[SampleKey(3, 77)]["tokens"])
    for other in (AssociativeRecall("val", examples=10), AssociativeRecall("train", examples=10, seed=1)):
        assert not torch.equal(other[3]["tokens"], data[3]["tokens"])
    batch = collate_sequences(backwards)
    assert batch["inputs"].shape == batch["labels"].shape == (10, 64)
    with pytest.raises(IndexError):
        data[10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(split="all"), "split: got 'all'"),
        (dict(tokens=14, pairs=4), "got 4 pairs in 14 tokens and 1000 examples, expected at least one"),
        (dict(pairs=2.5), "expected integers"),
        (dict(seed=-1), "a seed of 0 or more"),
        (dict(tokens=65), "an even number of tokens"),
        (dict(pairs=0), "got 0 pairs"),
        (dict(examples=0), "0 examples"),
        (dict(vocab_size=8), "vocab_size is 8, expected more than 9 for 4 pairs"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit(arguments, message):
    with pytest.raises(InputError, match=message):
        AssociativeRecall(**dict(split="train") | arguments)
