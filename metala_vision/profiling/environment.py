"""What figures were measured with: processor or GPU, versions, threads, memory and clocks."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import platform
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import use_fused_attn

import metala_vision
from metala_vision import kernels, layers, models
from metala_vision.errors import InputError


def environment(device: str = "cpu", threads: int | None = None) -> dict:
    """What must be the same for figures to stand in one table; without `threads`, PyTorch's number counts."""
    found = {
        "device": torch.device(device).type,
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "system": platform.system(),
        "threads": threads or torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "metala_vision": metala_vision.__version__,
        "sources": _sources(),
        "kernel": {"cpu": "c"}.get(chosen := kernels.available_backends(torch.device(device))[0], chosen),
        "fused_attention": bool(use_fused_attn()),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory_gb": round(properties.total_memory / 1e9, 1)}
        found["cuda"] = torch.version.cuda or torch.version.hip
        found["cudnn"] = torch.backends.cudnn.version()
        driver: Any = getattr(torch._C, "_cuda_getDriverVersion", None)
        found["driver"] = driver() if driver is not None and torch.version.cuda else None
        found["triton"] = _version("triton")
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sources() -> str:
    """A digest of the source files of the operators, layers and models."""
    digest = hashlib.sha256()
    for package in (kernels, layers, models):
        for path in sorted((p for folder in package.__path__ for p in Path(folder).rglob("*")), key=lambda p: p.name):
            digest.update(path.read_bytes() if path.suffix in (".py", ".c", ".h") else b"")
    return digest.hexdigest()[:12]


def can_draw() -> bool:
    """Whether there is matplotlib, which is no dependency of the library."""
    return importlib.util.find_spec("matplotlib") is not None


def check_pictures() -> None:
    """Raises InputError without matplotlib, before a run begins: pictures come last."""
    if not can_draw():
        raise InputError("pictures need matplotlib, which is not installed: pip install matplotlib")


def clock_mhz(device: str = "cpu") -> float | None:
    """The clock of the processor or GPU now, where it can be read; a virtual machine tells the nominal one."""
    if device.startswith("cuda"):
        try:
            return torch.cuda.clock_rate(device)
        except Exception:  # the library that reads it is missing, or raises an error of its own
            return None
    value = _field("/proc/cpuinfo", "cpu MHz")
    return round(float(value)) if value else None


def available_memory() -> int | None:
    """Bytes that can be had without swapping, or fewer if a control group grants less; None where neither is known.

    It reads a control group of version 2 that is mounted at the root, as that of a container is.
    """
    value = _field("/proc/meminfo", "MemAvailable")
    found = [1024 * int(value.split()[0])] if value else []
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            pages = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            cached = int(pages["inactive_file"]) + int(pages["active_file"])  # the system gives it back on demand
            found.append(int(limit) - int((group / "memory.current").read_text()) + cached)
    except (OSError, KeyError, ValueError):
        pass  # no such group, or not of version 2: the machine's memory is the limit
    return min(found, default=None)


def memory_limit() -> int | None:
    """Bytes that a process is given for its data, nine tenths of what can be had; None where that is not known."""
    available = available_memory()
    return None if available is None else int(0.9 * available)


def resident_memory() -> tuple[int | None, int | None]:
    """Resident bytes of this process, now and at the peak (on Linux since `reset_peak`); None where unknown."""
    now, peak = (_field("/proc/self/status", name) for name in ("VmRSS", "VmHWM"))
    if now is None or peak is None:
        try:
            import resource
        except ImportError:  # Windows
            return None, None
        unit = 1 if platform.system() == "Darwin" else 1024
        return None, unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(now.split()[0]), 1024 * int(peak.split()[0])


def reset_peak() -> None:
    """Starts the peak of `resident_memory` anew, on systems that can."""
    with contextlib.suppress(OSError):  # then the peak counts from the start of the process, which is recent
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
