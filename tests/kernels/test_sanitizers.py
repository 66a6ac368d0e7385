"""The C kernels as a program of their own, under the sanitizers and valgrind: sanitizer_driver.c says what it calls."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from metala_vision.kernels import native

DRIVER = Path(__file__).with_name("sanitizer_driver.c")
KERNELS = Path(native.__file__).parent
INSTRUCTIONS = {**native.INSTRUCTIONS, "baseline": ()}
# What defines the arithmetic of the shipped library, at an optimisation that keeps one access for one line.
FLAGS = [flag for flag in native.FLAGS if flag not in ("-O3", "-fPIC", "-shared")]
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SECONDS = 240
A_PART, ALL = "7", "1"  # every how many-th of the cases of the scans: of all K and V, half and mode


def runs_here(instructions: str) -> bool:
    """Whether this processor has an instruction set."""
    ranks = ["baseline", "AVX2", "AVX512"]
    capability = torch.backends.cpu.get_cpu_capability()
    return instructions == "baseline" or capability in ranks[ranks.index(instructions) :]


def gcc() -> str:
    if not (path := shutil.which("gcc")):
        pytest.skip("no gcc")
    return path


def run(command: list, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", **environment}
    command = [str(part) for part in command]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS, env=environment)


def build(folder: Path, instructions: str, *flags: str) -> Path:
    if not runs_here(instructions):
        pytest.skip(f"this processor has no {instructions}")
    program = folder / f"driver-{instructions}"
    command = [gcc(), *FLAGS, *INSTRUCTIONS[instructions], "-g1", *flags, f"-I{KERNELS}", DRIVER, "-o", program]
    result = run(command)
    assert result.returncode == 0, result.stderr
    return program


@pytest.fixture(scope="module")
def sanitizers(tmp_path_factory) -> None:
    """Skips where gcc comes without the runtime, or where the runtime may not run."""
    folder = tmp_path_factory.mktemp("probe")
    source, program = folder / "probe.c", folder / "probe"
    source.write_text("int main(void) { return 0; }\n")
    result = run([gcc(), *SANITIZE, "-fopenmp", source, "-o", program])
    if result.returncode == 0:
        result = run([program])
    if result.returncode:
        pytest.skip(f"gcc's sanitizers do not run here: {result.stderr.strip().splitlines()[:1]}")


def check_clean(result: subprocess.CompletedProcess, calls: int) -> None:
    """No report, no value that is not finite, and about as many calls as the driver's tables say."""
    assert result.returncode == 0, result.stderr[-4000:]
    assert not result.stderr, result.stderr[-4000:]
    assert int(result.stdout.split()[0]) >= calls, result.stdout


@pytest.mark.long
@pytest.mark.usefixtures("sanitizers")
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_sanitizers_find_nothing(tmp_path, instructions):
    """Catches a read or write beside a tensor or a scratch buffer, a leak, undefined arithmetic, an output left out."""
    program = build(tmp_path, instructions, "-Og", "-fopenmp", *SANITIZE)
    check_clean(run([program, "2", A_PART, "poison"]), 700)


@pytest.mark.slow
@pytest.mark.usefixtures("sanitizers")
@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_sanitizers_find_nothing_in_any_case(tmp_path, instructions, threads):
    """Catches the same in each combination of grid, K, V and dtype, optimised, and with more threads than tasks."""
    program = build(tmp_path, instructions, "-O2", "-fopenmp", *SANITIZE)
    check_clean(run([program, threads, ALL, "poison"]), 2400)


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["AVX2", "baseline"])  # valgrind 3.19 knows no AVX-512
def test_memcheck_finds_nothing(tmp_path, instructions):
    """Catches a result that depends on memory nobody wrote: scratch, padding, states."""
    if not (valgrind := shutil.which("valgrind")):
        pytest.skip("no valgrind")
    program = build(tmp_path, instructions, "-O1")  # on one thread: to memcheck, OpenMP's pool is a leak
    memcheck = [valgrind, "--quiet", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"]
    check_clean(run([*memcheck, program, "1", A_PART]), 700)
