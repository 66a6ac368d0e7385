"""Times taken side by side: on a shared machine only ratios within one interleaved run mean anything."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

MIN_ROUNDS = 3  # before a budget may end a measurement


class Spread(NamedTuple):
    """Seconds of the rounds of one candidate."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.seconds)

    @property
    def relative_range(self) -> float:
        """Distance of the quartiles over the median; 0 for a single round."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median

    def ratio_to(self, other: "Spread") -> float:
        """Median of this one's time over the other's in the same round: a slow minute of the machine slows both."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds))


def interleaved(
    candidates: dict[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> Iterator[dict[str, Spread]]:
    """Runs every candidate once per round, in turn; yields the times so far after each round, the warm-up left out."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(-warmup, rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if number >= 0:
                seconds[name].append(elapsed)
        yield {name: Spread(tuple(values)) for name, values in seconds.items()}
