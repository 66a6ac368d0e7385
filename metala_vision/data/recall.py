"""Multi-query associative recall: pairs of a key and a value, and later the keys again, whose values are asked."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.registry import DATASETS, FUNCTIONS
from torch.utils.data import Dataset

from metala_vision.errors import InputError

from .base import check_split
from .sampling import SampleKey
from .splits import SPLITS

IGNORED = -100  # label of a place where nothing is asked, as in torch's cross-entropy


@DATASETS.register_module()
class AssociativeRecall(Dataset):
    """MQAR by zoology's protocol (arXiv 2312.04927).

    A sequence begins with `pairs` keys, each followed by its value. Keys come from the lower half of the vocabulary,
    but for 0, values from the upper half, and no two of a sequence are the same. Behind them every key stands once
    more, an even number of tokens from the end of the pairs, and near places are more likely; its label is its value.
    All other places have random tokens. Sequence i of a split is a function of (seed, split, i) alone.

    Args:
        split: "train", "val" or "test".
        tokens: length of a sequence.
        pairs: keys in it.
        examples: sequences of the split.
        vocab_size: number of tokens.
        power: exponent of the law: the n-th of the even places behind the pairs has a weight of n^(power - 1).
        seed: of the sequences.

    Raises:
        InputError: an unknown split, or sizes that do not fit each other.
    """

    named = False  # its classes are numbers

    def __init__(
        self,
        split: str,
        tokens: int = 64,
        pairs: int = 4,
        examples: int = 1000,
        vocab_size: int = 8192,
        power: float = 0.01,
        seed: int = 0,
    ):
        check_split(split)
        if any(type(number) is not int for number in (tokens, pairs, examples, vocab_size, seed)) or seed < 0:
            raise InputError(
                f"AssociativeRecall: got {tokens!r} tokens, {pairs!r} pairs, {examples!r} examples, vocab_size "
                f"{vocab_size!r} and seed {seed!r}, expected integers, and a seed of 0 or more"
            )
        if pairs < 1 or examples < 1 or 4 * pairs > tokens or tokens % 2:
            raise InputError(
                f"AssociativeRecall: got {pairs} pairs in {tokens} tokens and {examples} examples, expected at least "
                f"one of each, and an even number of tokens that is 4 times the pairs or more"
            )
        if vocab_size // 2 <= max(pairs, 1):
            raise InputError(
                f"AssociativeRecall: vocab_size is {vocab_size}, expected more than {2 * pairs + 1} for {pairs} pairs"
            )
        self.split, self.tokens, self.pairs, self.examples = split, tokens, pairs, examples
        self.vocab_size, self.seed = vocab_size, seed
        self.classes = range(vocab_size)
        weights = np.arange(1, (tokens - 2 * pairs) // 2 + 1, dtype=np.float64) ** (power - 1)
        self.chances = weights / weights.sum()

    @property
    def metainfo(self) -> dict:
        """What mmengine keeps of a dataset in checkpoints and metrics."""
        return dict(dataset=type(self).__name__, split=self.split, tokens=self.tokens, pairs=self.pairs)

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, key: int | SampleKey) -> dict:
        """dict(tokens [N] int64, labels [N] int64, which are `IGNORED` where nothing is asked)."""
        index = key.sample if isinstance(key, SampleKey) else key
        if not 0 <= index < self.examples:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        half, context = self.vocab_size // 2, 2 * self.pairs
        keys = 1 + rng.choice(half - 1, self.pairs, replace=False)
        values = half + rng.choice(self.vocab_size - half, self.pairs, replace=False)
        asked = context + 2 * rng.choice(len(self.chances), self.pairs, replace=False, p=self.chances)
        tokens = rng.integers(0, self.vocab_size, self.tokens)
        tokens[0:context:2], tokens[1:context:2] = keys, values
        tokens[asked] = keys
        labels = np.full(self.tokens, IGNORED)
        labels[asked] = values
        return dict(tokens=torch.from_numpy(tokens), labels=torch.from_numpy(labels))


@FUNCTIONS.register_module()
def collate_sequences(samples: Sequence[dict]) -> dict:
    """dict(inputs [B, N] int64, labels [B, N] int64, errors, which are none: every sequence can be read)."""
    return dict(
        inputs=torch.stack([sample["tokens"] for sample in samples]),
        labels=torch.stack([sample["labels"] for sample in samples]),
        errors=[],
    )
