"""A large picture in overlapping tiles, each of which answers for the objects in its middle."""

from typing import NamedTuple

OVERLAP = 4  # neighbours share this part of a tile, a quarter: larger objects may be cut


class Tile(NamedTuple):
    """A part of a picture, in its pixels.

    Attributes:
        top, left, bottom, right: of the tile.
        core: (top, left, bottom, right) of what it answers for; the cores of all tiles cover the picture once.
    """

    top: int
    left: int
    bottom: int
    right: int
    core: tuple[float, float, float, float]

    def answers_for(self, x: float, y: float) -> bool:
        """Whether a place of the picture lies in its core."""
        top, left, bottom, right = self.core
        return top <= y < bottom and left <= x < right


def tiles(height: int, width: int, side: int | None) -> list[Tile]:
    """Tiles of a side of pixels that cover a picture, row by row; one of the whole picture where `side` is None."""
    rows, columns = (_cuts(length, side or length) for length in (height, width))
    return [
        Tile(top, left, bottom, right, (first, begin, last, end))
        for top, bottom, first, last in rows
        for left, right, begin, end in columns
    ]


def _cuts(length: int, side: int) -> list[tuple[int, int, float, float]]:
    """Begin and end of each tile along an axis, and of its core. All are of one length, and spread evenly."""
    side = min(side, length)
    step = max(1, side - side // OVERLAP)
    count = -(-(length - side) // step) + 1
    begins = [round(i * (length - side) / max(1, count - 1)) for i in range(count)]
    borders = [(begin + former + side) / 2 for former, begin in zip(begins, begins[1:])]
    cores = zip([float("-inf"), *borders], [*borders, float("inf")])
    return [(begin, begin + side, *core) for begin, core in zip(begins, cores)]
