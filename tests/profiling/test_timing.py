"""The clocks: the wall's on a CPU, a GPU's own events."""

import pytest
import torch

from metala_vision.profiling.timing import interleaved, seconds_of


@pytest.fixture
def gpu(monkeypatch) -> list[str]:
    """A GPU whose clock moves by five milliseconds with each kernel, and what was asked of it in sequence."""
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing, "an event without times"

        def record(self) -> None:
            self.at = 5.0 * calls.count("kernel")
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("synchronize")

        def elapsed_time(self, end: "Event") -> float:
            assert calls[-1] == "synchronize", "a time that nobody has waited for"
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    return calls


def test_a_gpu_is_timed_by_its_own_events(gpu):
    """Catches the time of launches taken for that of kernels, and a wait between the runs of one turn."""
    assert seconds_of(lambda: gpu.append("kernel"), "cuda:0", repeats=3) == pytest.approx(5e-3)
    assert gpu == ["record", "kernel", "kernel", "kernel", "record", "synchronize"]


def test_rounds_in_turn_on_a_gpu(gpu):
    """Catches a device that does not reach the clock, and a warm-up that counts."""
    runs = {"one": lambda: gpu.append("kernel"), "two": lambda: gpu.extend(["kernel"] * 2)}
    *_, spreads = interleaved(runs, rounds=4, warmup=2, device="cuda")
    assert spreads["one"].seconds == pytest.approx((5e-3,) * 4)
    assert spreads["two"].ratio_to(spreads["one"]) == pytest.approx(2)


def test_a_cpu_needs_no_events(gpu):
    """Catches a GPU that is asked for where there is none."""
    assert seconds_of(lambda: sum(range(100_000)), "cpu", repeats=2) > 0
    assert gpu == []
