"""How much of the processors other programs take while something is timed."""

import os
import time
from pathlib import Path

STATISTICS = Path("/proc/stat")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
IDLE = (3, 4)  # columns of waiting for work, and for disks


class Others:
    """The share of this process's cores that other programs take, from its making on.

    Linux counts it; elsewhere the load of the last minute less one process stands in for it.
    """

    def __init__(self):
        self.start, self.own, self.busy = time.perf_counter(), _own_seconds(), _busy_seconds()

    def share(self) -> float:
        """In [0, 1], since the making of this object; 0 where the system does not say."""
        cores = _cores()
        seconds = time.perf_counter() - self.start
        busy = _busy_seconds()
        if busy is None or self.busy is None:
            load = os.getloadavg()[0] - 1 if hasattr(os, "getloadavg") else 0.0
            return min(1.0, max(0.0, load / len(cores)))
        others = busy - self.busy - (_own_seconds() - self.own)
        return min(1.0, max(0.0, others / (len(cores) * seconds)))


def _cores() -> set[int]:
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _own_seconds() -> float:
    """Of all threads of this process and of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _busy_seconds() -> float | None:
    """For which the cores of this process had something to do, since the system was started; None if nobody counts."""
    try:
        lines = [line.split() for line in STATISTICS.read_text().splitlines()]
    except OSError:
        return None
    cores = {f"cpu{core}" for core in _cores()}
    counts = [[int(count) for count in line[1:9]] for line in lines if line and line[0] in cores]
    return sum(sum(count) - sum(count[i] for i in IDLE) for count in counts) / TICKS
