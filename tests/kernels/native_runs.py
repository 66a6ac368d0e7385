"""Calls of every C operator, processes of their own, and compilers that are scripts, for the tests of `native`."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tolerances import FLOAT32, relative_rms
from torch import Tensor

from metala_vision import kernels
from metala_vision.kernels import backends, conv_silu, conv_swiglu, gated_linear_attention, mixer, native, swiglu

ALL = ("row", "row_reverse", "column", "column_reverse")
GRID = (7, 9)
SECONDS = 120


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
        "conv_swiglu": {"x": normal(2, n, 66), "weight": normal(33, 1, 3, 3), "dy": normal(2, n, 33)},
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
        "conv_swiglu": lambda x: conv_swiglu(**x, rows=grid[0], cols=grid[1]),
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


def start(function: Callable, *arguments: object, **environment: str) -> subprocess.Popen:
    """Calls a function of a test file in a new interpreter, with arguments as strings."""
    package = Path(kernels.__file__).resolve().parents[1]
    program = (
        "import sys, types\n"
        "sys.modules['metala_vision'] = package = types.ModuleType('metala_vision')\n"
        f"package.__path__ = [{str(package)!r}]\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]\n"
        f"import {function.__module__}\n"
        f"{function.__module__}.{function.__name__}(*sys.argv[1:])\n"
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


def restart(monkeypatch) -> None:
    monkeypatch.setattr(native, "_loader", native._Loader())
    monkeypatch.setattr(backends, "_announced", set())


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
