"""Times taken side by side: on a shared machine only ratios within one interleaved run mean anything."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from metala_vision.command_line import check_device
from metala_vision.errors import InputError

MIN_ROUNDS = 3  # before a budget may end a measurement


def timed_device(device: str) -> str:
    """`device` if this machine has it and there is a clock for it; for auto the GPU, or the CPU where there is none.

    Raises:
        InputError: the machine lacks it, there is no clock for it, or there is no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"--device: got {device!r}, expected auto, cpu, cuda or cuda:1; others are not timed here")
    checked = check_device(device)
    return "cpu" if checked.startswith("cpu") else checked


def seconds_of(run: Callable[[], object], device: str = "cpu", repeats: int = 1) -> float:
    """Seconds of one run, as the mean of `repeats` without a pause between them.

    On a GPU it is the time between two events that the device itself records. It includes the gaps in which the device
    waits for the host to launch, but not the host's wait for the end. On a CPU it is the time of the wall clock.
    """
    if not device.startswith("cuda"):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats
    stream = torch.cuda.current_stream(device)  # or the first GPU would record the events, whichever one runs
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(stream)
    for _ in range(repeats):
        run()
    end.record(stream)
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


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
    candidates: dict[str, Callable[[], object]], rounds: int, warmup: int = 1, device: str = "cpu"
) -> Iterator[dict[str, Spread]]:
    """Runs every candidate once per round, in turn; yields the times so far after each round, the warm-up left out.

    The clock is that of `device`, see `seconds_of`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(-warmup, rounds):
        for name, run in candidates.items():
            elapsed = seconds_of(run, device)
            if number >= 0:
                seconds[name].append(elapsed)
        yield {name: Spread(tuple(values)) for name, values in seconds.items()}
