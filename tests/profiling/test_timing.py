"""The clocks: the wall's on a CPU, a GPU's own events."""

import pytest
import torch

from metala_vision.errors import InputError
from metala_vision.profiling.speed.timing import interleaved, seconds_of, timed_device


@pytest.fixture
def gpu(monkeypatch) -> list[str]:
    """A GPU whose clock moves by five milliseconds with each kernel, and what was asked of it in sequence."""
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing, "an event without times"

        def record(self, stream: str) -> None:
            self.at = 5.0 * calls.count("kernel")
            calls.append(f"record on {stream}")

        def synchronize(self) -> None:
            calls.append("synchronize")

        def elapsed_time(self, end: "Event") -> float:
            assert calls[-1] == "synchronize", "a time that nobody has waited for"
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: device or "the first GPU")
    return calls


def test_a_gpu_is_timed_by_its_own_events(gpu):
    """Catches times of launches, a wait between the runs of one turn, and events of a GPU that has nothing to do."""
    assert seconds_of(lambda: gpu.append("kernel"), "cuda:1", repeats=3) == pytest.approx(5e-3)
    assert gpu == ["record on cuda:1", "kernel", "kernel", "kernel", "record on cuda:1", "synchronize"]


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


def test_devices_that_have_a_clock(monkeypatch):
    """Catches launches on an Apple GPU timed by the wall's clock, and a GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert timed_device("auto") == timed_device("cpu") == timed_device("cpu:0") == "cpu"
    for device in ("mps", "tpu", "cpu0"):
        with pytest.raises(InputError, match=f"^--device: got '{device}', expected auto, cpu, cuda or cuda:1"):
            timed_device(device)
    with pytest.raises(InputError, match="^--device: got 'cuda', but torch finds no CUDA GPU here; use --device cpu"):
        timed_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [timed_device(device) for device in ("auto", "cuda:1")] == ["cuda", "cuda:1"]
    with pytest.raises(InputError, match="^--device: got 'cuda:2', but there are 2 GPUs"):
        timed_device("cuda:2")
