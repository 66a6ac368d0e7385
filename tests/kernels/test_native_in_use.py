"""The loaded C kernels in threads, after a fork, and on each instruction set."""

import multiprocessing
import os
import platform
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from native_runs import ALL, GRID, SECONDS, differences, finish, make, results, start
from tolerances import for_dtype, relative_rms

from metala_vision.kernels import available_backends, gated_linear_attention, mixer, native


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


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("scan", [("column_reverse",), ("row", "row_reverse"), ALL], ids=len)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_more_threads_than_heads(threads, dtype, scan):
    """Where threads take blocks of V of one head: catches a block that reads another's, and a sum that misses one."""
    grid, n = (7, 9), 63
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    wide = normal(1, 2, n, 64).detach().movedim(1, 2)  # whole heads apart in memory
    scanned = [normal(1, n, 2, 24), normal(1, n, 2, 24), wide.requires_grad_(), normal(1, n, 2, 24)]
    gated = [normal(1, n, 384), normal(128), normal(64)]

    def both(backend: str) -> list[torch.Tensor]:
        q, log_decay, v, k = scanned
        o = gated_linear_attention(q, log_decay, v, k=k, grid=grid, scan=scan, backend=backend)
        derived = gated_linear_attention(q, log_decay, v, grid=grid, scan=scan, backend=backend)
        y = mixer(*gated, 2, *grid, ",".join(scan), backend)
        outputs, leaves = [o, derived, y], scanned + gated
        weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype) for x in outputs]
        return outputs + list(torch.autograd.grad(outputs, leaves, weights))

    expected = both("chunked")
    threads(1)
    alone = both("cpu")
    for number in (3, 8, 64):  # two heads in 1 or 2, 2 or 4, and 4 blocks: orders that run at once, or one alone
        threads(number)
        found = both("cpu")
        assert not [x for x, y in zip(found[:3], alone) if not torch.equal(x, y)], "outputs change with the threads"
        tolerance = for_dtype(dtype)
        assert all(relative_rms(x, y) <= tolerance for x, y in zip(found, expected))


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


@pytest.mark.long
@pytest.mark.usefixtures("fresh")
def test_first_calls_at_once(compiler):
    """Catches a library that each of the threads of a new process compiles for itself."""
    finish(start(first_calls_at_once, CC=str(compiler.path)))
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


@pytest.mark.long
@pytest.mark.usefixtures("kernels")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_and_denormals():
    """Catches a hang of data loader workers, whose parent's OpenMP threads are gone, and flush-to-zero for all."""
    assert finish(start(fork_and_denormals)) == "done\n"


def send_threads(connection, and_fork: bool) -> None:
    torch.set_num_threads(2)
    if not and_fork:
        connection.send(native.num_threads())
    elif os.fork() == 0:
        connection.send(native.num_threads())
        os._exit(0)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(
    ("method", "and_fork", "threads"),
    [("fork", False, 1), ("forkserver", False, 2), ("forkserver", True, 1), ("spawn", False, 2), ("spawn", True, 1)],
)
def test_threads_of_a_new_process(method, and_fork, threads):
    """Catches kernels on one thread in the processes of a fork server, and on two where they would hang."""
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["metala_vision.kernels.native"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send_threads, args=(theirs, and_fork))
    process.start()
    assert ours.poll(SECONDS), "nothing came back"
    assert ours.recv() == threads
    process.join()


def save_results(source: str, target: str) -> None:
    """The program of a process on another instruction set."""
    inputs = torch.load(source)
    found = {str(dtype): results(inputs, dtype, backend=None) for dtype in (torch.float32, torch.bfloat16)}
    torch.save({"instructions": native.instruction_set(), "backends": available_backends(), **found}, target)


@pytest.mark.long
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("capability", "instructions"), [("avx2", "AVX2"), ("default", "")], ids=["avx2", "default"])
def test_instruction_sets(tmp_path, capability, instructions):
    """Catches code for fewer lanes that does not compile, or computes something else than on this machine."""
    if instructions and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    inputs = make()
    torch.save(inputs, tmp_path / "inputs.pt")
    variables = {"ATEN_CPU_CAPABILITY": capability, "XDG_CACHE_HOME": str(tmp_path)}
    finish(start(save_results, tmp_path / "inputs.pt", tmp_path / "results.pt", **variables))
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


MAPPED = """
    import ctypes
    from metala_vision.kernels import native
    native.library()
    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd".split()]
        _fields_ += [("rest", ctypes.c_size_t * 5)]
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
    before = libc.mallinfo2().hblkhd
    assert libc.malloc(ctypes.c_size_t(24 << 20))
    print(libc.mallinfo2().hblkhd - before)
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.33"), reason="asks glibc's malloc, from 2.33 on")
def test_malloc_keeps_large_blocks():
    """Catches activations that are mapped anew, page by page, in every block: malloc maps what is beyond its line."""
    command = [sys.executable, "-c", textwrap.dedent(MAPPED)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) == 0
