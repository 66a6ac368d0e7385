"""The first import of mmengine by several processes at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parent.parent / "metala_vision" / "yapf_cache.py"
# Without the package, whose torch takes seconds
RUN = f"""
import pathlib, runpy, sys, threading
import_yapf = runpy.run_path({str(MODULE)!r})["import_yapf"]
broken = pathlib.Path(sys.argv[1])
"""


def run(code: str, cache: Path, *args: str) -> subprocess.CompletedProcess:
    environment = dict(os.environ, XDG_CACHE_HOME=str(cache))
    return subprocess.run(
        [sys.executable, "-c", code, *args], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(params=["Grammar", "PatternGrammar"])
def broken(request, tmp_path):
    """One of yapf's files, of which the first half is written."""
    assert run("import yapf", tmp_path).returncode == 0
    (path,) = tmp_path.rglob(f"{request.param}-*.pickle")
    path.with_suffix(".whole").write_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run("import yapf", tmp_path).returncode == 1
    return path


def test_waits_until_the_other_process_has_written(broken, tmp_path):
    """Catches ranks, or workers of a test run, that die of another one's half-written file."""
    write = "threading.Timer(0.5, lambda: broken.write_bytes(broken.with_suffix('.whole').read_bytes())).start()\n"
    done = run(RUN + write + "import_yapf(); print(sys.modules['yapf'].__name__)", tmp_path, str(broken))
    assert (done.returncode, done.stdout) == (0, "yapf\n"), done.stderr


def test_file_that_stays_broken_is_named(broken, tmp_path):
    done = run(RUN + "import_yapf(0.2)", tmp_path, str(broken))
    assert done.returncode == 1
    assert "ImportError: yapf, which mmengine needs, has left a broken file in its cache" in done.stderr
    assert "remove the folder YAPF" in done.stderr
