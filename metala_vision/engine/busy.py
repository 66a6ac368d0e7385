"""How much processor time other programs take while something is timed."""

import os
import socket
import time
from pathlib import Path

from mmengine.dist import all_gather_object, barrier

STATISTICS = Path("/proc/stat")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
IDLE = (3, 4)  # columns for the time spent idle, and waiting for disks


class Others:
    """The share of this process's cores that programs outside of the run have taken since this object was made.

    All processes of a run make their object and call `share` together, so that the work of none of them counts as that
    of others. Linux counts the time; elsewhere the load of the minute before, less one process, stands in for it.
    """

    def __init__(self):
        barrier()
        self.start, self.own, self.busy = time.perf_counter(), _own_seconds(), _busy_seconds()
        self.load = os.getloadavg()[0] - 1 if hasattr(os, "getloadavg") else 0.0

    def share(self) -> float:
        """The share, in [0, 1], since this object was made; 0 where the system does not say."""
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
    """Processor time of all threads of this process, and of the processes that it started, ended or still running."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + _living_seconds()


def _living_seconds() -> float:
    """Processor time of the running descendants of this process; 0 where the system does not count it."""
    spent: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for path in STATISTICS.parent.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # the fields after the name, which may have spaces
        except OSError:  # the process has just ended
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
    """How long this process's cores were busy since the system was started; None where the system does not count it."""
    try:
        lines = [line.split() for line in STATISTICS.read_text().splitlines()]
    except OSError:
        return None
    cores = {f"cpu{core}" for core in _cores()}
    counts = [[int(count) for count in line[1:9]] for line in lines if line and line[0] in cores]
    return sum(sum(count) - sum(count[i] for i in IDLE) for count in counts) / TICKS
