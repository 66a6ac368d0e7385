"""How much of the processors other programs take while something is timed."""

import os
import socket
import time
from pathlib import Path

from mmengine.dist import all_gather_object, barrier

STATISTICS = Path("/proc/stat")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
IDLE = (3, 4)  # columns of waiting for work, and for disks


class Others:
    """The share of this process's cores that programs outside of the run take, from its making on.

    All processes of a run make theirs and ask it together: the work of none of them is that of others. Linux counts
    it; elsewhere the load of the minute before, less one process, stands in for it.
    """

    def __init__(self):
        barrier()
        self.start, self.own, self.busy = time.perf_counter(), _own_seconds(), _busy_seconds()
        self.load = os.getloadavg()[0] - 1 if hasattr(os, "getloadavg") else 0.0

    def share(self) -> float:
        """In [0, 1], since the making of this object; 0 where the system does not say."""
        barrier()
        cores = sorted(_cores())
        seconds = time.perf_counter() - self.start
        busy, place = _busy_seconds(), (socket.gethostname(), cores)
        spent = all_gather_object((place, _own_seconds() - self.own))
        if busy is None or self.busy is None:
            return min(1.0, max(0.0, self.load / len(cores)))
        others = busy - self.busy - sum(own for where, own in spent if where == place)
        return min(1.0, max(0.0, others / (len(cores) * seconds)))


def _cores() -> set[int]:
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _own_seconds() -> float:
    """Of all threads of this process, and of the processes that it has started: a loader's workers go on for long."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + _living_seconds()


def _living_seconds() -> float:
    """Of the living processes that this one has started and that those have; 0 where nobody counts."""
    spent: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for path in STATISTICS.parent.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # what is before is its name, which may have spaces
        except OSError:  # it has just ended
            continue
        process = int(path.parent.name)
        spent[process] = sum(int(field) for field in fields[11:15]) / TICKS
        children.setdefault(int(fields[1]), []).append(process)
    found, seconds = [os.getpid()], 0.0
    while found:
        started = children.get(found.pop(), [])
        seconds += sum(spent[process] for process in started)
        found += started
    return seconds


def _busy_seconds() -> float | None:
    """For which the cores of this process had something to do, since the system was started; None if nobody counts."""
    try:
        lines = [line.split() for line in STATISTICS.read_text().splitlines()]
    except OSError:
        return None
    cores = {f"cpu{core}" for core in _cores()}
    counts = [[int(count) for count in line[1:9]] for line in lines if line and line[0] in cores]
    return sum(sum(count) - sum(count[i] for i in IDLE) for count in counts) / TICKS
