"""Where compiled kernels are kept: users without a home, and folders that others may write to."""

import ctypes
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from native_runs import OUTPUT, Compiler, check_runs, restart, warnings_of

from metala_vision.kernels import native
from metala_vision.kernels.cache import CacheError, cache_folder, check_trusted, make_private, write_private

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.usefixtures("fresh")
def test_a_user_without_a_home(monkeypatch, compiler, tmp_path, caplog):
    """Catches a forward pass that raises in a container whose user has no name and no HOME."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    check_runs()
    check_runs()
    assert compiler.calls == 1
    (warning,) = warnings_of(caplog)
    assert warning.startswith("kernels cannot be kept (this user has no home: set XDG_CACHE_HOME to a folder")
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.usefixtures("fresh", "compiler")
def test_neither_a_home_nor_a_folder_for_temporary_files(monkeypatch, tmp_path):
    """Catches a forward pass that raises where nothing can be written at all: the composed form needs no files."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert not native.available()
    with pytest.raises(native.NativeError, match="do not load: .*No such file or directory"):
        native.library()


@pytest.mark.usefixtures("fresh")
def test_temporary_files_that_stay(monkeypatch, compiler):
    """Catches a library that is given up, once loaded, for its file on NFS: that one goes when the process ends."""

    def stays(*_: object, **__: object) -> None:
        raise OSError("Directory not empty")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(os, "rmdir", stays)
    check_runs()
    assert compiler.calls == 1


def test_a_home_that_depends_on_where_one_stands(monkeypatch):
    """Catches kernels that are loaded out of the folder that a program happens to be started in."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "here")
    with pytest.raises(CacheError, match="HOME is 'here', which depends on the current folder: set XDG_CACHE_HOME"):
        cache_folder()


@pytest.mark.parametrize("root", ["", "relative/folder"])
def test_an_address_that_depends_on_where_one_stands_is_ignored(monkeypatch, root):
    """Catches kernels in the folder of somebody's data."""
    monkeypatch.setenv("XDG_CACHE_HOME", root)
    assert cache_folder() == Path.home() / ".cache" / "metala_vision"


def give_away(path: Path) -> None:
    os.chown(path, 54321, 54321)


def linked(path: Path) -> None:
    real = path.with_name("elsewhere" + path.suffix)
    path.rename(real)
    path.symlink_to(real)


OPEN: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "folder_of_all": (lambda folder, _: folder.chmod(0o777), "others may write to .*: chmod go-w"),
    "folder_of_a_group": (lambda folder, _: folder.chmod(0o770), "others may write to .*: chmod go-w"),
    "file_of_all": (lambda _, file: file.chmod(0o666), "others may write to .*so: chmod go-w"),
    "checksum_of_all": (
        lambda _, file: file.with_suffix(".sha256").chmod(0o622),
        "others may write to .*sha256: chmod go-w",
    ),
    "parent_of_all": (lambda folder, _: folder.parent.chmod(0o777), "anybody may exchange .*: chmod o-w"),
    "link": (lambda _, file: linked(file), "is a link: remove it"),
    "link_to_a_checksum": (lambda _, file: linked(file.with_suffix(".sha256")), "sha256 is a link: remove it"),
    "folder_of_another": (
        lambda folder, _: give_away(folder),
        "belongs to user 54321, and this is user 0: chown 0 .*, or set XDG_CACHE_HOME",
    ),
    "file_of_another": (lambda _, file: give_away(file), "so belongs to user 54321, and this is user 0: remove it"),
}


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("kind", [pytest.param(k, marks=as_root if "another" in k else []) for k in OPEN])
def test_what_others_could_have_written_is_compiled_around(kind, monkeypatch, compiler, caplog):
    """Catches code of somebody else's that runs as this user, and a refusal that costs the kernels."""
    native.library()
    (file,) = native.cache_folder().glob("*.so")
    planted = b"what somebody else has written"
    file.write_bytes(planted)
    file.with_suffix(".sha256").write_text(hashlib.sha256(planted).hexdigest())
    spoil, message = OPEN[kind]
    spoil(native.cache_folder(), file)
    restart(monkeypatch)
    check_runs()
    assert compiler.calls == 2
    (warning,) = warnings_of(caplog)
    assert re.search(message, warning), warning
    assert warning.endswith("): compiled for this process alone")
    assert file.read_bytes() == planted, "nothing is written where others write"


@pytest.mark.usefixtures("fresh")
def test_own_files_are_trusted_whatever_the_umask(monkeypatch, built, compiler, caplog):
    """Catches a cache that is never used again, for the permissions that a linker gave its file."""
    before = os.umask(0)
    try:
        check_runs()
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o077 for path in native.cache_folder().iterdir()} == {0}
    restart(monkeypatch)
    check_runs()
    assert compiler.calls == 1
    assert not warnings_of(caplog)


@pytest.mark.usefixtures("fresh")
def test_a_cache_on_another_disk(monkeypatch, compiler, tmp_path, caplog):
    """Catches a link of the user's own, by which people move a cache to a larger disk."""
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "cache").mkdir(mode=0o700)
    native.cache_folder().symlink_to(tmp_path / "disk")
    check_runs()
    restart(monkeypatch)
    check_runs()
    assert compiler.calls == 1
    assert not warnings_of(caplog)
    (tmp_path / "disk").chmod(0o777)
    with pytest.raises(CacheError, match="others may write to .*disk"):
        check_trusted(native.cache_folder())


@as_root
@pytest.mark.usefixtures("fresh")
def test_kernels_that_an_image_brings(monkeypatch, compiler, caplog):
    """Catches root's files, which a container's user can read and not write, taken for somebody else's."""
    native.library()
    compiler.break_()
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    restart(monkeypatch)
    check_runs()
    assert not warnings_of(caplog)


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="a file is loaded by its name here")
def test_a_file_that_is_exchanged_after_it_was_checked(monkeypatch, compiler, tmp_path):
    """Catches a gap between check and loading, through which somebody puts a file of theirs."""
    native._load(tmp_path / "model")  # under a path that is loaded now; the cache's is not yet
    shutil.copytree(tmp_path / "model", native.cache_folder())
    (file,) = native.cache_folder().glob("*.so")
    load = ctypes.CDLL

    def exchange(name: str) -> ctypes.CDLL:
        file.unlink()
        file.write_bytes(b"what somebody else has written")
        return load(name)

    monkeypatch.setattr(ctypes, "CDLL", exchange)
    check_runs()
    assert compiler.calls == 1


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_cache_that_is_no_folder(tmp_path, kind):
    """Catches a message that does not say what is in the way."""
    place = tmp_path / "cache"
    place.touch() if kind == "file" else place.symlink_to(tmp_path / "nowhere")
    what = "no folder" if kind == "file" else "a link that leads nowhere"
    with pytest.raises(CacheError, match=f"{place} is {what}: remove it"):
        make_private(place)


def test_a_disk_that_is_full(monkeypatch, tmp_path):
    """Catches halves of files that nobody removes."""

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_private(tmp_path / "file", b"content")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("fresh")
def test_a_library_without_a_function(monkeypatch, compiler, tmp_path, caplog):
    """Catches an AttributeError in the middle of a model, where the file of that name is of another version."""
    source, old = tmp_path / "old.c", tmp_path / "old.so"
    source.write_text("void metala_let_malloc_keep_memory(void) {}\nint metala_forward(void *call) { return 0; }\n")
    real = shutil.which("cc") or shutil.which("gcc")
    assert native._run([real, "-shared", "-fPIC", str(source), "-o", str(old)]) == ""
    native._load(tmp_path / "model")
    shutil.copytree(tmp_path / "model", native.cache_folder())
    (file,) = native.cache_folder().glob("*.so")
    shutil.copyfile(old, file)
    file.with_suffix(".sha256").write_text(hashlib.sha256(file.read_bytes()).hexdigest())
    check_runs()
    (warning,) = warnings_of(caplog)
    assert "has no metala_backward" in warning
    assert compiler.calls == 2
    assert not file.exists(), "the next process compiles into the cache again"


def test_every_function_that_is_called_is_looked_for():
    """Catches a new function in C that the check of a loaded library does not know."""
    folder = Path(native.__file__).parent
    called = {name for path in folder.glob("*.py") for name in re.findall(r'function\(\s*"(\w+)"', path.read_text())}
    called |= set(re.findall(r"library\.(metala_\w+)\(", (folder / "native.py").read_text()))
    assert called == set(native.FUNCTIONS)


def test_a_broken_compiler_beside_an_open_cache(fresh, monkeypatch, tmp_path):
    """Catches a cache that is trusted after all, where there is no other way to the kernels."""
    broken = Compiler(tmp_path / "bin", OUTPUT)
    broken.break_()
    monkeypatch.setenv("CC", str(broken.path))
    native.cache_folder().mkdir(parents=True)
    native.cache_folder().chmod(0o777)
    with pytest.raises(native.NativeError, match="failed: error: broken"):
        native.library()
