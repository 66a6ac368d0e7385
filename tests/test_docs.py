"""The site: it builds without a warning, has every public name, and the README stays short."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = ("", ".kernels", ".layers", ".models", ".dense", ".data", ".engine", ".profiling")
DOCS = sorted((ROOT / "docs").rglob("*.md"))


def documented() -> set[str]:
    """Names that a reference page describes, by their last part."""
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    return {name.rsplit(".", 1)[-1] for name in re.findall(r"^::: ([\w.]+)$", pages, re.M)}


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_is_in_the_reference(package):
    """Catches a function that is exported and described nowhere."""
    names = {name for name in importlib.import_module(f"metala_vision{package}").__all__ if not name.startswith("_")}
    modules = {name for name in names if hasattr(importlib.import_module(f"metala_vision{package}"), name)}
    missing = modules - documented() - {"flops"}  # a module: its functions are described
    assert not missing, f"add to docs/api: {sorted(missing)}"


def test_the_site_builds_strictly(tmp_path):
    """Catches a page that is linked and not there, and a docstring that names an argument which does not exist."""
    source = tmp_path / "source"
    for name in ("docs", "metala_vision"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    # as `make docs` installs it: the modules of kernels/ where their name says
    shutil.copytree(source / "metala_vision", source / "build" / "package" / "metala_vision")
    for path in (ROOT / "kernels").glob("*.py"):
        shutil.copy(path, source / "build" / "package" / "metala_vision" / "kernels")
    shutil.copy(ROOT / "mkdocs.yml", source)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = [path for path in DOCS if path.parent == ROOT / "docs"]
    assert all((tmp_path / "site" / f"{path.stem}.html").is_file() for path in pages)
    assert "log_decay" in (tmp_path / "site" / "api" / "kernels.html").read_text()


@pytest.mark.long
def test_examples_run(tmp_path):
    """Catches an example that nobody has tried since the code was changed. One process: imports take the time."""
    pages = ["README.md", "docs/index.md", "docs/extending.md", "docs/kernels.md"]
    blocks = {page: re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S) for page in pages}
    assert all(blocks.values())
    program = "\n".join(
        f"exec(compile({chr(10).join(code)!r}, {page!r}, 'exec'), {{'__name__': '__main__'}})"
        for page, code in blocks.items()
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr


def test_readme_is_short():
    """Catches a README that grows back: details have pages of their own."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(path):
    """Catches a command or a table that names a tool, a config or a folder that was moved."""
    named = re.findall(
        r"(?:configs|tools|kernels|tests|results|metala_vision)/[\w./-]*[\w/](?![\w./*-])", path.read_text()
    )
    missing = [name for name in named if not (ROOT / name).exists() and not re.search(r"NAME|CARD|\.\.\.", name)]
    assert not missing
