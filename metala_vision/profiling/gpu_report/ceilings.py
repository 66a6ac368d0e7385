"""What the card is, which compilers there are, and what its memory and matrix units reach, a bound for the rest."""

import inspect
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path

import torch

from .clock import milliseconds
from .parts import Cell, Job


def cells(job: Job) -> list[Cell]:
    """Card and versions, a copy within the device, a bfloat16 product."""
    return [
        Cell("versions", lambda: versions(job)),
        Cell("copy", lambda: copy(job)),
        Cell("product", lambda: product(job)),
    ]


def versions(job: Job) -> dict:
    """Everything that a figure may depend on."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processors": os.cpu_count(),
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "assemblers": {path.name: assembler_version(path) for path in assemblers()},
        "compute_sanitizer": shutil.which("compute-sanitizer") is not None,
    }
    for name in ("triton", "timm", "numpy", "flash-linear-attention"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if job.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "multiprocessors": properties.multi_processor_count,
            "l2_mb": round(properties.L2_cache_size / 2**20),
            "cuda": torch.version.cuda or torch.version.hip,
            "driver": driver(),
        }
    return found


def assemblers(capability: tuple[int, int] = (9, 0)) -> list[Path]:
    """The ptxas that come with Triton: first the one that it takes for cards of this capability."""
    spec = util.find_spec("triton")
    if spec is None or spec.origin is None:
        return []
    from triton.backends.nvidia.compiler import get_ptxas

    folder = Path(spec.origin).parent / "backends" / "nvidia" / "bin"
    found = [folder / name for name in ("ptxas", "ptxas-blackwell") if (folder / name).is_file()]
    # Since Triton 3.9 Hopper has a default of its own; in Triton 3.5 get_ptxas takes no capability
    arguments = [10 * capability[0] + capability[1]] if inspect.signature(get_ptxas).parameters else []
    default = Path(get_ptxas(*arguments).path)
    return sorted(found, key=lambda path: path != default)


def assembler_version(path: Path) -> str | None:
    """The version, such as "12.9.86"; None where the program tells none."""
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d[\d.]*)", text)
    return found[1] if found else None


def driver() -> str | None:
    """The driver's version, where nvidia-smi tells."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[0].strip() if done.returncode == 0 else None


def copy(job: Job) -> dict:
    """GB/s that a copy within the device's memory reads and writes."""
    size = 2**20 if job.rehearse else 2**31
    source = torch.zeros(size, dtype=torch.uint8, device=job.device)
    target = torch.empty_like(source)
    took = median(job, lambda: target.copy_(source))
    return {"copy_gb_s": round(2 * size / took / 1e6, 3), "milliseconds": took}


def product(job: Job) -> dict:
    """A square product of random bfloat16 matrices: zeros would draw less power and clock higher."""
    size = 128 if job.rehearse else 8192
    left, right = (torch.randn(size, size, device=job.device).to(torch.bfloat16) for _ in range(2))
    took = median(job, lambda: left @ right)
    return {"product_tflop_s": round(2 * size**3 / took / 1e9, 3), "milliseconds": took}


def median(job: Job, run: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    return milliseconds({"": run}, job.device, rounds=3 if job.rehearse else 20)[""].median
