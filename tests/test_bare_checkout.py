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
    "bench_kernels.py": ["--shapes", "1x4x4", "--rounds", "2"],
    "bench_model.py": ["--models", "metala_vit_nano", "--cells", "32", "--rounds", "3"],
    "throughput.py": ["--models", "metala_vit_nano", "--resolutions", "32", "--rounds", "1", "--out", "out"],
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the sources."""
    folder = tmp_path_factory.mktemp("bare") / "checkout"
    for name in ("metala_vision", "kernels", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def bare(checkout: Path, tool: str, *arguments: str) -> subprocess.CompletedProcess:
    code = BARE.format(absent=ABSENT, tools=str(checkout / "tools"))
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", code, str(checkout / "tools" / tool), *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=250)


@pytest.mark.parametrize("tool", TIMES)
def test_times_are_taken(checkout, tool):
    """Catches a tool that needs mmengine for its exit code, fvcore for its clock or matplotlib for its figures."""
    done = bare(checkout, tool, "--json", "--device", "cpu", *TIMES[tool])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    if tool == "throughput.py":
        assert [row["status"] for row in result["rows"]] == ["ok"]
        assert "no pictures are drawn: matplotlib is not installed" in done.stderr
        assert not list(checkout.rglob("*.png"))


def test_counting_says_what_it_needs(checkout):
    """Catches a traceback out of an import."""
    done = bare(checkout, "flops.py", "--models", "metala_vit_nano")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].endswith("fvcore, which is not installed: pip install fvcore")


def test_help_of_the_gpu_report(checkout):
    """Catches a tool that imports what is not there before it says how it is used."""
    done = bare(checkout, "gpu_report.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "--rehearse" in done.stdout
