"""Lists that worker processes share."""

import os
from collections.abc import Sequence

import numpy as np


class PackedStrings(Sequence):
    """Strings, or paths, as one block of bytes.

    Reading a list changes the reference counts of its members, and so copies, page by page, what a worker process
    shares with its parent: 150 MB a worker for ImageNet's paths.
    """

    def __init__(self, strings: Sequence[str]):
        encoded = [os.fsencode(string) for string in strings]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int | slice) -> str | list[str]:
        index = range(len(self))[index]  # negative ones from the end; IndexError past it
        if isinstance(index, range):
            return [self[i] for i in index]
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())
