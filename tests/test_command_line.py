"""What the tools share, for users without a home."""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from metala_vision.command_line import run_tool


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A user without a home, and a folder for temporary files."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_is_lent_a_cache(tmp_path, capsys):
    """Catches tools that end in yapf, which mmengine imports and which wants to keep its grammar somewhere."""

    def tool() -> dict:
        lent = Path(os.environ["XDG_CACHE_HOME"])
        (lent / "something").touch()
        return {"lent": lent.parent == tmp_path}

    assert run_tool(tool) == 0
    said = capsys.readouterr()
    assert said.out == '{"lent": true}\n'
    assert said.err.startswith("this user has no home: set XDG_CACHE_HOME to a folder that is theirs alone; nothing is")
    assert "XDG_CACHE_HOME" not in os.environ
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("homeless")
def test_neither_a_home_nor_a_folder_for_temporary_files(monkeypatch, tmp_path, capsys):
    """Catches a traceback where a user can only be told what to set."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert run_tool(dict) == 2
    assert "error: this user has no home: set XDG_CACHE_HOME" in capsys.readouterr().err


def test_a_cache_of_the_user_s_own_is_left_alone(monkeypatch, tmp_path, capsys):
    """Catches a temporary folder for everybody."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run_tool(lambda: {"own": os.environ["XDG_CACHE_HOME"] == str(tmp_path)}) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ('{"own": true}\n', "")


FAULTS = """
import resource, torch
from metala_vision.command_line import keep_freed_memory

def faults():
    for i in range(12):
        if i == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(12 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_freed_memory(), faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("told", [{}, {"MALLOC_ARENA_MAX": "2"}], ids=["", "told"])
def test_freed_memory_is_kept(told):
    """Catches a page fault for every 4 kB of every tensor of more than 32 MB; what the user sets is left as it is."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))} | told
    command = [sys.executable, "-c", FAULTS]
    before, kept, after = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert kept == "False" or not told
    assert kept == "True" or told or platform.libc_ver()[1] < "2.35"
    assert int(before) > 200  # ten tensors of 48 MB, also in pages of 2 MB
    assert (int(after) < int(before) / 2) == (kept == "True")  # one or two of them go between other blocks
