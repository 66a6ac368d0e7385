"""The package from outside: what its import does and does not do, from a checkout, installed, and as a wheel."""

import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORWARD = """
import timm, torch
model = timm.create_model("metala_vit_nano", depth=2, num_classes=3).eval()
assert model(torch.randn(1, 3, 40, 72)).shape == (1, 3)
"""


def python(code: str, *options: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Standard output of `code` in a fresh interpreter, away from the checkout."""
    command = [sys.executable, *options, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", **(env or {})}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.long
def test_import_without_triton_compiler_or_network(tmp_path):
    """Catches an import, or a first image, that needs what a plain CPU machine behind a firewall does not have."""
    code = """
        import socket, sys

        class Blocked(socket.socket):
            def __init__(self, *args, **kwargs):
                raise OSError("the import opened a socket")

        def refuse(*args, **kwargs):
            raise OSError("the import went to the network")

        socket.socket, socket.create_connection, socket.getaddrinfo = Blocked, refuse, refuse
        sys.modules["triton"] = None
        import metala_vision
    """
    empty = tmp_path / "bin"
    empty.mkdir()
    python(textwrap.dedent(code) + FORWARD, cwd=tmp_path, env={"PATH": str(empty), "HOME": str(tmp_path)})
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [], "the import, or a forward pass, left files behind"


def test_import_is_inert(tmp_path):
    """Catches GPU probing, processes, connections, changed settings and heavy modules at import.

    Measured on top of timm's import, which brings triton itself where it is installed (torch._dynamo looks for it).
    """
    code = """
        import logging, sys
        import timm, torch

        events = []
        watched = ("subprocess.", "socket.", "os.system", "os.exec", "os.posix_spawn", "os.fork")
        sys.addaudithook(lambda event, args: events.append(event) if event.startswith(watched) else None)

        def probe(*args, **kwargs):
            raise AssertionError("the import asked for a GPU")

        for name in ("is_available", "device_count", "get_device_properties", "get_device_capability", "init"):
            setattr(torch.cuda, name, probe)

        def settings():
            return torch.get_num_threads(), torch.get_default_dtype(), list(logging.getLogger().handlers)

        before, modules = settings(), set(sys.modules)
        import metala_vision

        assert events == [], events
        assert settings() == before
        added = {name.split(".")[0] for name in set(sys.modules) - modules}
        assert added <= {"metala_vision", "torch", *sys.stdlib_module_names}, added
        assert not {"mmengine", "albumentations", "matplotlib"} & set(sys.modules)
        assert len(timm.list_models("metala*")) >= 5
    """
    python(code, cwd=tmp_path)


@pytest.mark.long
def test_import_time(tmp_path):
    """Catches an import that grows: half a second on top of timm's own, the better of two fresh processes.

    timm comes first and only what we add is timed, so the noise of the seconds that torch takes does not count.
    """
    code = """
        import time, timm
        start = time.perf_counter()
        import metala_vision
        print(time.perf_counter() - start)
    """
    assert min(float(python(code, cwd=tmp_path)) for _ in range(2)) <= 0.5


@pytest.mark.long
def test_bare_checkout_without_installation(tmp_path):
    """Catches a package that works only where it was installed: `kernels` lies beside `metala_vision` in a checkout."""
    checkout = tmp_path / "checkout"
    for folder in ("metala_vision", "kernels"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    code = f"""
        import importlib.util, sys
        from pathlib import Path

        def editable(finder):
            return "__editable__" in getattr(finder, "__module__", "") + type(finder).__module__

        sys.meta_path[:] = [finder for finder in sys.meta_path if not editable(finder)]
        sys.path_hooks[:] = [hook for hook in sys.path_hooks if not editable(hook)]
        assert importlib.util.find_spec("metala_vision") is None, "the installed package is still in the way"
        checkout = Path({str(checkout)!r})
        sys.path.insert(0, str(checkout))
        import metala_vision, metala_vision.kernels
        assert Path(metala_vision.kernels.__file__).is_relative_to(checkout), metala_vision.kernels.__file__
        assert str(checkout) not in metala_vision.__path__, "metala_vision.tools and so on could be imported"
        assert Path(sys.modules["metala_vision.kernels.ops"].__file__) == checkout / "kernels" / "ops.py"
    """
    python(textwrap.dedent(code) + FORWARD, "-I", cwd=tmp_path)


@pytest.mark.long
def test_installed_package_has_its_kernels(tmp_path):
    """Catches an installation whose mapping of `metala_vision.kernels` is lost, and two copies of one module."""
    code = """
        import sys, metala_vision.kernels
        from metala_vision import __version__
        from importlib.metadata import version
        assert version("metala_vision") == __version__
        assert "kernels" not in sys.modules
    """
    python(code, "-I", cwd=tmp_path)


@pytest.mark.slow
def test_wheel(tmp_path):
    """Catches a wheel without the kernels, or with the tests: built from a copy, imported from the wheel itself."""
    source, wheels, target = tmp_path / "source", tmp_path / "wheels", tmp_path / "target"
    hidden = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "work_dirs")
    shutil.copytree(ROOT, source, ignore=hidden)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)]
    result = subprocess.run(build, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(target)
    for needed in (
        "__init__.py",
        "kernels/__init__.py",
        "kernels/ops.py",
        "layers/mixers/metala.py",
        "models/metala_vit.py",
    ):
        assert f"metala_vision/{needed}" in names
    packages = {p.relative_to(ROOT).as_posix() for p in (ROOT / "metala_vision").rglob("__init__.py")}
    assert packages <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"metala_vision"}
    assert not [name for name in names if "test" in name]
    sources = {p.relative_to(ROOT / "kernels").as_posix() for p in (ROOT / "kernels").rglob("*.[pc]*") if p.is_file()}
    sources = {name for name in sources if name.endswith((".py", ".c"))}
    assert sources <= {name.removeprefix("metala_vision/kernels/") for name in names}
    code = f"""
        import sys
        sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
        sys.path.insert(0, {str(target)!r})
        import metala_vision.kernels
        assert metala_vision.kernels.__file__.startswith({str(target)!r}), metala_vision.kernels.__file__
    """
    python(textwrap.dedent(code) + FORWARD, "-I", cwd=tmp_path)
