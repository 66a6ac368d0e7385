"""Building, keeping and loading the C kernels, and running them in threads, after a fork, on each instruction set."""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from metala_vision.kernels import available_backends, conv_silu, gated_linear_attention, mixer, native, ops, swiglu
from tolerances import FLOAT32, for_dtype, relative_rms
from torch import Tensor

ALL = ("row", "row_reverse", "column", "column_reverse")
GRID = (7, 9)
SECONDS = 120


@pytest.fixture
def kernels() -> None:
    """Skips where the C kernels do not run. No mark, which would load them when this file is imported."""
    if "cpu" not in available_backends():
        pytest.skip("the C kernels do not run here")


# --- one call of each operator, forwards and backwards


def make(grid: tuple[int, int] = GRID, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Signed random inputs by operator, with the gradient of its output last."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    n = grid[0] * grid[1]
    wide, narrow = (2, n, 2), (1, n, 3)
    return {
        "scan": {
            "q": normal(*wide, 24),
            "log_decay": normal(*wide, 24) - 1,
            "v": normal(*wide, 33),
            "dy": normal(*wide, 33),
        },
        "scan_k": {
            "q": normal(*narrow, 8),
            "log_decay": -normal(*narrow, 8).abs(),
            "v": normal(*narrow, 16),
            "k": normal(*narrow, 8),
            "dy": normal(*narrow, 16),
        },
        "mixer": {
            "projected": normal(2, n, 144),
            "gate_bias": normal(48),
            "aug_weight": normal(24),
            "dy": normal(2, n, 48),
        },
        "conv": {"x": normal(2, n, 20), "weight": normal(20, 1, 3, 3), "dy": normal(2, n, 20)},
        "swiglu": {"x": normal(2, n, 66), "dy": normal(2, n, 33)},
    }


def results(
    inputs: dict[str, dict[str, Tensor]], dtype: torch.dtype, grid: tuple[int, int] = GRID, backend: str | None = None
) -> dict[str, Tensor]:
    """Output and gradients of each operator, by name; on inputs rounded to `dtype` where that is bfloat16."""
    operators = {
        "scan": lambda x: gated_linear_attention(**x, grid=grid, scan=ALL, backend=backend),
        "scan_k": lambda x: gated_linear_attention(**x, grid=grid, scan=("column", "row_reverse"), backend=backend),
        "mixer": lambda x: mixer(**x, num_heads=3, rows=grid[0], cols=grid[1], scan=",".join(ALL), backend=backend),
        "conv": lambda x: conv_silu(**x, rows=grid[0], cols=grid[1]),
        "swiglu": lambda x: swiglu(**x),
    }
    found = {}
    for operator, tensors in inputs.items():
        leaves = {name: x.to(dtype).requires_grad_() for name, x in tensors.items() if name != "dy"}
        out = operators[operator](leaves)
        gradients = torch.autograd.grad(out, list(leaves.values()), tensors["dy"].to(out.dtype))
        found[f"{operator} out"] = out.detach()
        found |= {f"{operator} {name}": gradient for name, gradient in zip(leaves, gradients)}
    return found


def differences(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    assert actual.keys() == expected.keys()
    return [name for name, x in expected.items() if not torch.equal(actual[name], x)]


# --- a process of its own, without what the package imports beside the kernels


def start(function: str, *arguments: object, **environment: str) -> subprocess.Popen:
    """Calls a function of this file in a new interpreter, with arguments as strings."""
    kernels = Path(native.__file__).resolve().parent
    program = (
        "import sys, types\n"
        "sys.modules['metala_vision'] = package = types.ModuleType('metala_vision')\n"
        f"package.__path__ = [{str(kernels.parent)!r}]\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]\n"
        f"import test_native\n"
        f"test_native.{function}(*sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    """What it printed; fails unless it ends well, and in time."""
    try:
        said, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        pytest.fail(f"no end after {SECONDS} s: {said[-2000:]}")
    assert process.returncode == 0, said[-4000:]
    return said


# --- compilers, as scripts that note each call


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """The loader and the door as in a new process, with an empty cache and a folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    restart(monkeypatch)


def restart(monkeypatch) -> None:
    monkeypatch.setattr(native, "_loader", native._Loader())
    monkeypatch.setattr(ops, "_announced", set())


class Compiler:
    """A script in the place of the compiler; `calls` counts, `break_` makes it fail from now on."""

    def __init__(self, folder: Path, body: str):
        folder.mkdir(exist_ok=True)
        self.path, self.log, self.broken = folder / "compiler", folder / "log", folder / "broken"
        self.path.write_text(
            f"#!/bin/sh\necho call >> '{self.log}'\n"
            f"if [ -e '{self.broken}' ]; then echo 'error: broken' >&2; exit 1; fi\n{body}\n"
        )
        self.path.chmod(0o755)

    @property
    def calls(self) -> int:
        return len(self.log.read_text().split()) if self.log.exists() else 0

    def break_(self) -> None:
        self.broken.touch()


OUTPUT = 'while [ $# -gt 1 ]; do if [ "$1" = -o ]; then out=$2; fi; shift; done\n'


@pytest.fixture(scope="module")
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


def cached() -> list[Path]:
    folder = native.cache_folder()
    return sorted(folder.iterdir()) if folder.exists() else []


def check_runs() -> None:
    """The library that `native` has loaded gives the numbers of the composed form."""
    inputs = make()["scan"]
    del inputs["dy"]
    out = gated_linear_attention(**inputs, grid=GRID, scan=ALL, backend="cpu")
    assert relative_rms(out, gated_linear_attention(**inputs, grid=GRID, scan=ALL, backend="chunked")) <= FLOAT32


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


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


@pytest.mark.usefixtures("fresh")
def test_two_processes_build_at_once(monkeypatch, built, tmp_path):
    """Catches a half-written library that the other process loads, and files that nobody removes."""
    wait = 'i=0; while [ $(wc -l < "{log}") -lt 2 ] && [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done\n'
    both = Compiler(tmp_path / "bin", wait.format(log=tmp_path / "bin" / "log") + f"{OUTPUT}cp '{built}' \"$out\"")
    processes = [start("load_and_print", CC=str(both.path)) for _ in range(2)]
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
    assert failing.calls == 2  # with OpenMP and without, or for the cache and for the process alone
    assert not [path for path in cached() if path.suffix == ".tmp"]
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.usefixtures("kernels", "fresh")
def test_compiler_without_openmp(monkeypatch, caplog, tmp_path):
    """Catches a compiler without libgomp (clang, macOS) that costs the kernels: they run on one thread, and say so."""
    real = native._compiler()
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


# --- threads, forks, the processor


@pytest.fixture
def threads():
    """Sets the number of threads; put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("grid", [GRID, (15, 17), (16, 40)], ids=lambda grid: f"{grid[0]}x{grid[1]}")
def test_number_of_threads_changes_no_bit(threads, grid):
    """Catches an order of summation that depends on who comes first, and a share of the work that nobody does."""
    inputs = make(grid)
    threads(1)
    expected = {dtype: results(inputs, dtype, grid) for dtype in (torch.float32, torch.bfloat16)}
    for number in (2, 8):
        threads(number)
        assert native.num_threads() == number
        for dtype, x in expected.items():
            assert not differences(results(inputs, dtype, grid), x)


def hammer(threads, seconds: float) -> None:
    """Eight threads call everything for a while, each in its own sequence of shapes and dtypes."""
    cases = [
        (make(grid, seed), dtype, grid)
        for seed, grid in enumerate([GRID, (15, 17), (1, 5), (13, 10)])
        for dtype in (torch.float32, torch.bfloat16)
    ]
    threads(1)
    expected = [results(*case) for case in cases]
    threads(2)
    rounds, wrong, together = [0] * 8, [], threading.Barrier(8)

    def work(number: int) -> None:
        try:
            together.wait(60)
            until = time.monotonic() + seconds
            while rounds[number] < 2 or time.monotonic() < until:
                at = (number + rounds[number]) % len(cases)
                wrong.extend((at, name) for name in differences(results(*cases[at]), expected[at]))
                rounds[number] += 1
        except BaseException as error:
            wrong.append(error)

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(seconds + 60)
    assert not any(worker.is_alive() for worker in workers), f"no end: rounds {rounds}"
    assert not wrong
    assert min(rounds) >= 2


@pytest.mark.usefixtures("kernels")
def test_eight_threads_at_once(threads):
    """Catches state that two calls share: scratch memory, a struct, a count of threads."""
    hammer(threads, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
def test_eight_threads_for_long(threads):
    """Catches the same where it takes longer to show."""
    hammer(threads, 30)


def first_calls_at_once(*_: str) -> None:
    """The program of a process whose first calls come from eight threads."""
    inputs, found, together = make()["scan"], [], threading.Barrier(8)
    del inputs["dy"]

    def work() -> None:
        together.wait(60)
        found.append(gated_linear_attention(**inputs, grid=GRID, scan=ALL, backend="cpu"))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 8
    assert all(torch.equal(x, found[0]) for x in found)


@pytest.mark.usefixtures("fresh")
def test_first_calls_at_once(compiler):
    """Catches a library that each of the threads of a new process compiles for itself."""
    finish(start("first_calls_at_once", CC=str(compiler.path)))
    assert compiler.calls == 1


def in_a_child(function) -> None:
    """Forks; fails unless the child ends in time and `function` returned true there."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if function() else 1
        finally:
            os._exit(code)
    until = time.monotonic() + SECONDS / 3
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "the child's results differ, or it failed"
            return
        time.sleep(0.02)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


def denormals_live() -> bool:
    """Whether numbers below 1e-38 survive, in this thread and in those of OpenMP."""
    many = torch.full((1 << 17,), 1e-40) * 0.5
    return float("1e-310") * 0.5 != 0.0 and (torch.tensor(1e-40) * 0.5).item() != 0.0 and bool((many != 0).all())


def fork_and_denormals(*_: str) -> None:
    """The program of a process that forks, before the kernels are loaded and after they ran on two threads."""
    torch.set_num_threads(2)
    inputs = make()
    assert denormals_live()
    native._loader.lock.acquire()  # as if another thread were about to load
    in_a_child(native.available)
    native._loader.lock.release()
    assert native.available()
    assert denormals_live(), "loading the library has set flush-to-zero"
    expected = [results(inputs, dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert denormals_live(), "the kernels have set flush-to-zero"

    def same() -> bool:
        found = [results(inputs, dtype) for dtype in (torch.float32, torch.bfloat16)]
        return not any(differences(a, b) for a, b in zip(found, expected))

    def grandchild() -> bool:
        in_a_child(same)
        return same()

    in_a_child(same)
    in_a_child(grandchild)
    assert same(), "the parent's own results have changed"
    print("done")


@pytest.mark.usefixtures("kernels")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_and_denormals():
    """Catches a hang of data loader workers, whose parent's OpenMP threads are gone, and flush-to-zero for all."""
    assert finish(start("fork_and_denormals")) == "done\n"


def save_results(source: str, target: str) -> None:
    """The program of a process on another instruction set."""
    inputs = torch.load(source)
    found = {str(dtype): results(inputs, dtype, backend=None) for dtype in (torch.float32, torch.bfloat16)}
    torch.save({"instructions": native.instruction_set(), "backends": available_backends(), **found}, target)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("capability", "instructions"), [("avx2", "AVX2"), ("default", "")], ids=["avx2", "default"])
def test_instruction_sets(tmp_path, capability, instructions):
    """Catches code for fewer lanes that does not compile, or computes something else than on this machine."""
    if instructions and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    inputs = make()
    torch.save(inputs, tmp_path / "inputs.pt")
    variables = {"ATEN_CPU_CAPABILITY": capability, "XDG_CACHE_HOME": str(tmp_path)}
    finish(start("save_results", tmp_path / "inputs.pt", tmp_path / "results.pt", **variables))
    found = torch.load(tmp_path / "results.pt")
    assert found["instructions"] == instructions
    assert found["backends"][0] == "cpu"
    (library,) = (tmp_path / "metala_vision").glob("*.so")
    assert f"-{instructions or 'baseline'}-" in library.name
    for dtype in (torch.float32, torch.bfloat16):
        rounded = {name: {n: x.to(dtype) for n, x in tensors.items()} for name, tensors in inputs.items()}
        expected = results(rounded, torch.float64, backend="reference")
        for name, x in expected.items():
            error = relative_rms(found[str(dtype)][name], x)
            assert error <= for_dtype(dtype, name.split()[1]), (dtype, name, error)
