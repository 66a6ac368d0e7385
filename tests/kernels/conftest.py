"""Fixtures of the tests that build and load the C kernels."""

import tempfile
from pathlib import Path

import pytest
from native_runs import OUTPUT, Compiler, restart

from metala_vision.kernels import available_backends, native


@pytest.fixture
def kernels() -> None:
    """Skips where the C kernels do not run. No mark, which would load them when this file is imported."""
    if "cpu" not in available_backends():
        pytest.skip("the C kernels do not run here")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """The loader and the door as in a new process, with an empty cache and a folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    restart(monkeypatch)


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """A library from the compiler of this machine."""
    if "cpu" not in available_backends():
        pytest.skip("the C kernels do not run here")
    cache = tmp_path_factory.mktemp("built")
    native._load(cache)
    (path,) = cache.glob("*.so")
    return path


@pytest.fixture
def compiler(built, tmp_path, monkeypatch) -> Compiler:
    """Takes the library of `built` for the result of compiling: every test but one can do without the seconds."""
    copying = Compiler(tmp_path / "bin", f"{OUTPUT}cp '{built}' \"$out\"")
    monkeypatch.setenv("CC", str(copying.path))
    return copying
