"""Times of kernels on a GPU: candidates in turn, each from a cold cache, between two events of the device."""

import time
from collections.abc import Callable, Collection

import torch

from metala_vision.profiling.speed.timing import Spread

FLUSH = 2**28  # bytes written before each run: more than any second-level cache holds


def milliseconds(
    candidates: dict[str, Callable[[], object]],
    device: str,
    rounds: int,
    warmup: int = 3,
    from_idle: Collection[str] = (),
) -> dict[str, Spread]:
    """The milliseconds of each round of each candidate, which run in turn.

    The device has nothing to do when one of `from_idle` begins, so that its time has the host's launches in it.

    On a GPU a large buffer is written before each run. While the device does so the host can launch what follows, so
    that the time between the events is the device's own, unless the launches take longer than that write.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in candidates}
    flush = torch.empty(FLUSH, dtype=torch.uint8, device=device) if device == "cuda" else None
    for number in range(-warmup, rounds):
        for name, run in candidates.items():
            if flush is None:
                start = time.perf_counter()
                run()
                interval = 1e3 * (time.perf_counter() - start)
                if number >= 0:
                    taken[name].append(interval)
            else:
                flush.zero_()
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                if name in from_idle:
                    torch.cuda.synchronize()
                begin.record()
                run()
                end.record()
                if number >= 0:
                    events[name].append((begin, end))
    if flush is not None:
        torch.cuda.synchronize()
        taken = {name: [begin.elapsed_time(end) for begin, end in pairs] for name, pairs in events.items()}
    return {name: Spread(tuple(values)) for name, values in taken.items()}


def graphed(run: Callable[[], object], device: str) -> Callable[[], object]:
    """`run` as a CUDA graph: its kernels one after the other, without the host between them. On a CPU it is `run`."""
    if device != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, tunes and allocates, which a capture cannot
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> object:
        graph.replay()
        return kept

    return replay
