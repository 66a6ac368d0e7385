"""Building, keeping and loading the C kernels, with compilers that work and that do not."""

import hashlib
import logging
import os
import re
import shutil

import pytest
import torch
from native_runs import (
    OUTPUT,
    Compiler,
    cached,
    check_runs,
    differences,
    finish,
    make,
    restart,
    results,
    start,
    warnings_of,
)
from tolerances import FLOAT32, relative_rms

from metala_vision.kernels import available_backends, native

# --- building and keeping


def test_built_by_this_compiler(built):
    """Catches a library whose name does not tell the machine and its instructions, or whose checksum is not its own."""
    assert built.name.startswith(f"metala-{os.uname().machine}-{native.instruction_set() or 'baseline'}-")
    assert sorted(path.suffix for path in built.parent.iterdir()) == [".sha256", ".so"]
    assert built.with_suffix(".sha256").read_text() == hashlib.sha256(built.read_bytes()).hexdigest()


@pytest.mark.usefixtures("fresh")
def test_compiled_once_and_then_reused(monkeypatch, compiler, caplog):
    """Catches a cache that is not found again, or is asked only after the compiler, in this process or the next."""
    check_runs()
    check_runs()
    assert compiler.calls == 1
    assert [path.suffix for path in cached()] == [".sha256", ".so"]
    assert native.cache_folder().stat().st_mode & 0o077 == 0, "others can write where code is loaded from"
    compiler.break_()
    restart(monkeypatch)
    check_runs()
    assert compiler.calls == 1
    assert not warnings_of(caplog)


@pytest.mark.usefixtures("fresh")
def test_compiler_with_arguments(monkeypatch, compiler, caplog):
    """Catches a command such as "ccache gcc" taken for the name of a program that does not exist."""
    monkeypatch.setenv("CC", f"env {compiler.path}")
    check_runs()
    assert compiler.calls == 1
    assert not warnings_of(caplog)


@pytest.mark.usefixtures("fresh")
def test_another_compiler_compiles_anew(monkeypatch, compiler, built, tmp_path):
    """Catches a library of one compiler, or of one instruction set, taken for another's."""
    check_runs()
    other = Compiler(tmp_path / "other", f"{OUTPUT}cp '{built}' \"$out\"")
    monkeypatch.setenv("CC", str(other.path))
    restart(monkeypatch)
    check_runs()
    assert (compiler.calls, other.calls) == (1, 1)
    monkeypatch.setattr(native, "instruction_set", str)
    restart(monkeypatch)
    check_runs()
    assert other.calls == 2
    assert sum("baseline" in path.name for path in cached()) == 2 or native.instruction_set() == ""
    assert len(cached()) == 6


UNUSABLE = ["file", "below_a_file", "dangling_link", "proc", "read_only"]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("kind", UNUSABLE)
def test_cache_folder_that_takes_nothing(monkeypatch, compiler, tmp_path, caplog, kind):
    """Catches a home that is full of surprises and costs the kernels, or leaves files lying about."""
    home = tmp_path / "cache"
    if kind == "below_a_file":
        home.write_text("")
    elif kind == "proc":
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    else:
        home.mkdir()
    if kind == "file":
        native.cache_folder().write_text("")
    elif kind == "dangling_link":
        native.cache_folder().symlink_to(tmp_path / "nowhere" / "at_all")
    elif kind == "read_only":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        home.chmod(0o500)
    check_runs()
    check_runs()
    assert compiler.calls == 1
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"kernels cannot be kept in {native.cache_folder()} (")
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.usefixtures("fresh")
def test_read_only_cache_that_has_the_library(monkeypatch, compiler):
    """Catches a cache that has to be written to be read: an image with the kernels built in."""
    native.library()
    compiler.break_()
    native.cache_folder().chmod(0o500)
    try:
        restart(monkeypatch)
        check_runs()
    finally:
        native.cache_folder().chmod(0o700)
    assert compiler.calls == 1


DAMAGE = {
    "truncated": lambda library: library.write_bytes(library.read_bytes()[: library.stat().st_size // 2]),
    "empty": lambda library: library.write_bytes(b""),
    "one_byte": lambda library: library.write_bytes(library.read_bytes()[:-1] + b"x"),
    "no_checksum": lambda library: library.with_suffix(".sha256").unlink(),
    "empty_checksum": lambda library: library.with_suffix(".sha256").write_text(""),
    "garbage_with_its_checksum": lambda library: (
        library.write_bytes(b"no library"),
        library.with_suffix(".sha256").write_text(hashlib.sha256(b"no library").hexdigest()),
    ),
}


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_library_is_compiled_anew(compiler, built, tmp_path, kind):
    """Catches a file cut short by a full disk or a kill: loading one would end the process."""
    native._load(tmp_path / "model")  # what a whole one is called; that path is loaded, and the cache's is not yet
    shutil.copytree(tmp_path / "model", native.cache_folder())
    (library,) = native.cache_folder().glob("*.so")
    DAMAGE[kind](library)
    check_runs()
    assert compiler.calls == 2
    assert library.read_bytes() == built.read_bytes()
    assert library.with_suffix(".sha256").read_text() == hashlib.sha256(built.read_bytes()).hexdigest()
    assert len(cached()) == 2


def load_and_print(*_: str) -> None:
    """The program of a process that builds beside another one."""
    check_runs()
    print("done")


@pytest.mark.long
@pytest.mark.usefixtures("fresh")
def test_two_processes_build_at_once(monkeypatch, built, tmp_path):
    """Catches a half-written library that the other process loads, and files that nobody removes."""
    wait = 'i=0; while [ $(wc -l < "{log}") -lt 2 ] && [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done\n'
    both = Compiler(tmp_path / "bin", wait.format(log=tmp_path / "bin" / "log") + f"{OUTPUT}cp '{built}' \"$out\"")
    processes = [start(load_and_print, CC=str(both.path)) for _ in range(2)]
    said = [finish(process) for process in processes]
    assert said == ["done\n"] * 2
    assert both.calls == 2  # neither found the other's
    assert [path.suffix for path in cached()] == [".sha256", ".so"]
    both.break_()
    monkeypatch.setenv("CC", str(both.path))
    check_runs()


# --- compilers that do not work


def check_falls_back(caplog, reason: str) -> None:
    """The automatic choice is the composed form, said once; the C kernels by name raise, and say why."""
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            found = results(make(), torch.float32)
    said = [message for message in warnings_of(caplog) if "chunked" in message]
    assert len(said) == 1
    assert re.search(reason, said[0])
    assert not differences(found, results(make(), torch.float32, backend="chunked"))
    assert available_backends() == ("chunked", "reference")
    with pytest.raises(ValueError, match=f"^backend: got 'cpu', which cannot run here: .*{reason}"):
        results(make(), torch.float32, backend="cpu")


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CC": "no-such-compiler"}, "no C compiler: looked for no-such-compiler"),
        ({"CC": "", "PATH": "/nowhere"}, "no C compiler: looked for gcc, cc, clang"),
    ],
    ids=["CC", "PATH"],
)
def test_without_a_compiler(monkeypatch, caplog, variables, reason):
    """Catches an error, a silent fallback or a line for each call where a machine has no compiler."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_falls_back(caplog, reason)
    assert len(warnings_of(caplog)) == 1


FAILING = {
    "error": ("echo 'scan.c:7: error: unknown flag' >&2; exit 1", "compiler failed: scan.c:7: error: unknown flag"),
    "no_word": ("exit 3", "compiler failed: exit code 3"),
    "garbage": (f"{OUTPUT}echo 'no library' > \"$out\"", "the C kernels do not load: "),
    "nothing": ("exit 0", "the C kernels do not load: "),
    "no_end": ("sleep 20", "compiler failed: no result after 0.3 s"),
}


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("kind", FAILING)
def test_compiler_that_fails(monkeypatch, caplog, tmp_path, kind):
    """Catches a compiler's failure that ends the program, is tried again in each call, or does not say why."""
    body, reason = FAILING[kind]
    failing = Compiler(tmp_path / "bin", body)
    monkeypatch.setenv("CC", str(failing.path))
    monkeypatch.setattr(native, "SECONDS_TO_COMPILE", 0.3)
    check_falls_back(caplog, reason)
    # For the cache and for the process alone; what is no want of OpenMP is not tried without it.
    assert failing.calls == (1 if "compiler failed" in reason else 2)
    assert not [path for path in cached() if path.suffix == ".tmp"]
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.long
@pytest.mark.usefixtures("kernels", "fresh")
def test_compiler_without_openmp(monkeypatch, caplog, tmp_path):
    """Catches a compiler without libgomp (clang, macOS) that costs the kernels: they run on one thread, and say so."""
    real, *_ = native._compiler()
    without = Compiler(
        tmp_path / "bin",
        "for flag; do if [ $flag = -fopenmp ]; then echo 'error: unsupported option -fopenmp' >&2; exit 1; fi; done\n"
        f"exec '{real}' \"$@\" -O1",  # the last -O counts: compiles in half the time
    )
    monkeypatch.setenv("CC", str(without.path))
    found = results(make(), torch.float32, backend="cpu")
    for name, x in results(make(), torch.float64, backend="reference").items():
        assert relative_rms(found[name], x) <= FLOAT32, name
    (warning,) = warnings_of(caplog)
    assert re.search("has no OpenMP .*unsupported option -fopenmp.*one thread", warning)
    assert without.calls == 2
    native._load()  # as another process does
    assert without.calls == 2
    assert "has no OpenMP: the C kernels run on one thread" in warnings_of(caplog)[1]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("command", "reason"), [('gcc "', "CC: got 'gcc \"', which is no command"), (" ", "")])
def test_compilers_that_are_no_command(monkeypatch, caplog, command, reason):
    """Catches a traceback in every call for a variable that cannot be parsed."""
    monkeypatch.setenv("CC", command)
    if reason:
        check_falls_back(caplog, reason)
    else:
        assert native._compiler()


@pytest.mark.usefixtures("fresh")
def test_compiler_behind_a_link(monkeypatch, tmp_path, built, caplog):
    """Catches a link followed to a program that goes by its own name: ccache, installed as gcc."""
    script = Compiler(
        tmp_path / "bin",
        'if [ "$(basename "$0")" != gcc ]; then echo "error: called as $0" >&2; exit 1; fi\n'
        f"{OUTPUT}cp '{built}' \"$out\"",
    )
    links = tmp_path / "links"
    links.mkdir()
    (links / "gcc").symlink_to(script.path)
    monkeypatch.setenv("CC", "")
    monkeypatch.setenv("PATH", str(links), prepend=os.pathsep)
    check_runs()
    assert script.calls == 1
    assert not warnings_of(caplog)
