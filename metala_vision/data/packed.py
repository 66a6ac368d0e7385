"""Lists that worker processes share."""

import os
from collections.abc import Sequence
from typing import overload

import numpy as np


class PackedStrings(Sequence):
    """Strings, or paths, as one block of bytes.

    Reading a Python list changes the reference counts of its members. That copies, page by page, the memory that a
    worker process shares with its parent: 150 MB per worker for ImageNet's paths.
    """

    def __init__(self, strings: Sequence[str]):
        encoded = [os.fsencode(string) for string in strings]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = range(len(self))[index]  # negative indices count from the end; IndexError beyond it
        return os.fsdecode(self._bytes[self._ends[place] : self._ends[place + 1]].tobytes())
