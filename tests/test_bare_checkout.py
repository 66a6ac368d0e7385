"""The tools that time things, from a checkout that was never installed, on a machine that has little beside PyTorch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ABSENT = ("mmengine", "albumentations", "fvcore", "matplotlib", "pycocotools", "cv2", "skimage", "sklearn")
OF_THE_LIBRARY = ("torch", "timm", "triton", "numpy", "rich", "metala_vision")  # which take seconds to import
# Run in place of the tool: hides what a bare machine lacks, and an editable installation of the package.
BARE = """
import runpy, sys

def editable(finder):
    return "__editable__" in getattr(finder, "__module__", "") + type(finder).__module__

sys.meta_path[:] = [finder for finder in sys.meta_path if not editable(finder)]
sys.path_hooks[:] = [hook for hook in sys.path_hooks if not editable(hook)]
sys.modules.update(dict.fromkeys({absent!r}))
sys.argv[:] = sys.argv[1:]
sys.path[0] = {tools!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TIMES = {
    "bench_detector.py": "--backbones metala_vit_nano --kind fcos --sizes 64x64 --rounds 1",
    "bench_kernels.py": "--device cpu --shapes 1x4x4 --rounds 2",
    "bench_model.py": "--device cpu --models metala_vit_nano --cells 32 --rounds 3",
    "throughput.py": "--device cpu --models metala_vit_nano --resolutions 32 --rounds 1 --out out",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the sources."""
    folder = tmp_path_factory.mktemp("bare") / "checkout"
    for name in ("metala_vision", "kernels", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def bare(checkout: Path, tool: str, *arguments: str, absent: tuple = ABSENT) -> subprocess.CompletedProcess:
    code = BARE.format(absent=absent, tools=str(checkout / "tools"))
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", code, str(checkout / "tools" / tool), *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=250)


@pytest.mark.long
@pytest.mark.parametrize("tool", TIMES)
def test_times_are_taken(checkout, tool):
    """Catches a tool that needs mmengine for its exit code, fvcore for its clock or matplotlib for its figures."""
    done = bare(checkout, tool, "--json", *TIMES[tool].split())
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr, "of PyTorch's profiler, where there is no GPU"
    result = json.loads(done.stdout)
    if tool == "throughput.py":
        assert [row["status"] for row in result["rows"]] == ["ok"]
        assert "no pictures are drawn: matplotlib is not installed" in done.stderr
        assert not list(checkout.rglob("*.png"))


@pytest.mark.long
def test_counting_says_what_it_needs(checkout):
    """Catches a traceback out of an import."""
    done = bare(checkout, "flops.py", "--models", "metala_vit_nano")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].endswith("fvcore, which is not installed: pip install fvcore")


@pytest.mark.parametrize("tool", [*TIMES, "flops.py", "gpu_report.py"])
def test_help_waits_for_nothing(checkout, tool):
    """Catches a tool that imports what takes seconds, or is not there, before it says how it is used."""
    done = bare(checkout, tool, "--help", absent=(*ABSENT, *OF_THE_LIBRARY))
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
