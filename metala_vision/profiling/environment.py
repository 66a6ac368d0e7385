"""What figures hold for: processor or GPU, versions, threads, memory and clocks."""

import platform
from pathlib import Path

import timm
import torch


def environment(device: str = "cpu") -> dict:
    """What must be the same for figures to stand in one table."""
    found = {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory_gb": round(properties.total_memory / 1e9, 1)}
        found["cuda"] = torch.version.cuda or torch.version.hip
    return found


def clock_mhz(device: str = "cpu") -> float | None:
    """The clock of the processor or GPU now, where it can be read; of virtual machines it is the nominal one."""
    if device.startswith("cuda"):
        try:
            return torch.cuda.clock_rate(device)
        except (ImportError, RuntimeError):  # no library that reads it, or a driver that does not tell
            return None
    value = _field("/proc/cpuinfo", "cpu MHz")
    return round(float(value)) if value else None


def available_memory() -> int | None:
    """Bytes that can be had without swapping, or what a container still grants; None where neither is known."""
    value = _field("/proc/meminfo", "MemAvailable")
    found = [1024 * int(value.split()[0])] if value else []
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        found += [] if limit == "max" else [int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text())]
    except OSError:
        pass  # no control group, or one of the first version: the machine's memory is the limit
    return min(found, default=None)


def resident_memory() -> tuple[int, int]:
    """Bytes of this process in memory now, and at most since `reset_peak`. Linux only."""
    status = "/proc/self/status"
    now, peak = _field(status, "VmRSS"), _field(status, "VmHWM")
    if now is None or peak is None:
        raise OSError(f"{status} has no VmRSS and VmHWM: memory can be measured on Linux only")
    return 1024 * int(now.split()[0]), 1024 * int(peak.split()[0])


def reset_peak() -> None:
    """Starts the peak of `resident_memory` anew."""
    Path("/proc/self/clear_refs").write_text("5")


def _field(path: str, name: str) -> str | None:
    """The value of the first line "name : value", or None."""
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == name:
                    return value.strip()
    except OSError:
        pass  # another operating system
    return None
