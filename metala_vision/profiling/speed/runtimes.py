"""What runs a model: PyTorch, eager or compiled, or a runtime of exported files."""

import functools
import hashlib
import importlib.metadata
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from metala_vision.errors import InputError

from .steps import Cell, channels, create, split_arguments

RUNTIMES = ("eager", "compile", "onnxruntime", "openvino")
OF_FILES = ("onnxruntime", "openvino")
PRECISIONS = {"float32": "float32", "bfloat16": "float32", "int8": "int8"}  # of the file that is run in a dtype


def check_runtimes(names: Iterable[str], modes: Iterable[str], device: str, compiled: bool = False) -> list[str]:
    """The names of runtimes, each once.

    Args:
        names: out of `RUNTIMES`.
        modes: "infer" or "train", or both.
        device: as PyTorch calls it.
        compiled: whether all models are to be compiled by PyTorch anyway.

    Raises:
        InputError: a runtime that is unknown, not installed, or does not run in these modes and on this device.
    """
    names = list(dict.fromkeys(names))
    if not names or (unknown := [name for name in names if name not in RUNTIMES]):
        raise InputError(f"--runtime: got {unknown[0] if names else 'none'!r}, expected out of {', '.join(RUNTIMES)}")
    if names == ["eager"]:
        return names
    if device != "cpu":
        raise InputError(f"--runtime: got {' '.join(names)} on {device}, expected eager alone there; use --device cpu")
    if compiled:
        raise InputError("--compile: got it beside --runtime, which takes compile as one of its names; leave it out")
    for name in (name for name in names if name in OF_FILES):
        if "train" in modes:
            raise InputError(f"--mode: got train, but {name} does not train; leave it out of --runtime, or train out")
        from metala_vision.deploy.runtimes import RUNTIMES as PACKAGES  # which needs more than timing alone does

        if reason := PACKAGES[name].reason or PACKAGES["onnxruntime"].reason or PACKAGES["onnx"].reason:
            raise InputError(f"--runtime: {name} needs {reason}")
    return names


def reason_against(runtime: str, dtype: str) -> str:
    """Why a runtime is not timed in a dtype, whatever the processor; empty if it is."""
    if runtime in OF_FILES and dtype not in PRECISIONS:
        return f"exported files have no {dtype}"
    if runtime not in OF_FILES and dtype == "int8":
        return "int8 is of exported files alone"
    return "onnxruntime has no bfloat16 on a CPU" if (runtime, dtype) == ("onnxruntime", "bfloat16") else ""


def version_of(runtime: str) -> str:
    """The version of the package that runs a model."""
    return importlib.metadata.version(runtime if runtime in OF_FILES else "torch")


def exported(model: str, size: int, runtime: str, dtype: str, folder: str | Path) -> Path:
    """The file that a runtime is timed with, written by `metala_vision.export` if the folder does not have it.

    Both runtimes take the same file, which is for images of any batch and of any size where the model takes them, and
    otherwise of this size.

    Args:
        model: name, with arguments if it has any. Its weights are those of seed 0.
        size: side of the images in pixels.
        runtime: of `OF_FILES`.
        dtype: that it is to compute in.
        folder: of such files.

    Raises:
        InputError: the model cannot be exported, or the runtime has no such dtype.
    """
    if runtime not in OF_FILES or reason_against(runtime, dtype):
        raise InputError(f"runtime: got {runtime!r} in {dtype}, for which there are no files")
    name = re.sub(r"[^\w.=,-]", "_", model)
    kinds = (f"{kind}_{PRECISIONS[dtype]}_{_exporter()}.onnx" for kind in ("any", size))
    of_any, of_one = (Path(folder) / f"{name}_{kind}" for kind in kinds)
    for file in (of_any, of_one):
        if file.is_file():
            return file
    from metala_vision.deploy import export

    source, any_size = _source(model, size)
    file = of_any if any_size else of_one
    precision = PRECISIONS[dtype]
    # Speed does not ask how well the ranges fit.
    images = [_random(source, size) for _ in range(4)] if precision == "int8" else None
    dynamic, img_size = (("batch", "size"), None) if any_size else (("batch",), size)
    export(source, file, dynamic=dynamic, img_size=img_size, precision=precision, calibration=images)
    return file


@functools.cache
def _exporter() -> str:
    """A digest of what writes files: one of an older export may give the same numbers at another speed."""
    from metala_vision import deploy

    digest = hashlib.sha256(importlib.metadata.version("onnxruntime").encode())
    for path in sorted(Path(deploy.__path__[0]).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def prepare(send: Callable[[dict], None], model: str, size: int, runtime: str, dtype: str, folder: str) -> None:
    """Sees to it that there is the file of `exported`, and that it gives the numbers of the model.

    It sends whether the file is for images of `any_size`.

    It is for a process of its own, whose memory exporting may take.

    Raises:
        InputError: the runtime gives other numbers: the file is of another version of the model.
    """
    from metala_vision.deploy import runtime as loaded
    from metala_vision.deploy.exporting import TOLERANCES

    file = exported(model, size, runtime, dtype, folder)
    source, any_size = _source(model, size)
    images = _random(source, 96 if any_size else size)
    with torch.inference_mode():
        wanted = source(images)
    (found,) = loaded(runtime, file)(images)
    if not (found - wanted).abs().max() <= TOLERANCES[PRECISIONS[dtype]] * wanted.abs().max():
        raise InputError(f"--files: {file} gives other numbers than {model} has now; delete it, and it is written anew")
    send({"any_size": any_size})


def step_of_file(model: str, cell: Cell, runtime: str, threads: int, folder: str | Path) -> Callable[[], object]:
    """One run of the file of `exported` on random images of a cell; it returns the outputs."""
    from metala_vision.deploy import runtime as loaded

    file = exported(model, cell.size, runtime, cell.dtype, folder)
    images = torch.randn(cell.batch, channels(create(model, cell.size, "meta")), cell.size, cell.size)
    # OpenVINO is at its best where it knows the shape; onnxruntime is not faster for it.
    shape = tuple(images.shape) if runtime == "openvino" else None
    run = loaded(runtime, file, threads, "float32" if cell.dtype == "int8" else cell.dtype, shape)
    return lambda: run(images)


def _random(model: nn.Module, side: int) -> Tensor:
    return torch.randn(1, channels(model), side, side, generator=torch.Generator().manual_seed(0))


def _source(name: str, size: int) -> tuple[nn.Module, bool]:
    """A model with the weights of seed 0, in evaluation mode, and whether it takes images of any size."""
    from metala_vision.deploy import model_of

    architecture, arguments = split_arguments(name)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model, _ = model_of(architecture, **arguments)
        try:
            with torch.inference_mode():
                model(torch.zeros(1, channels(model), 96, 128))
        except Exception:  # a model is anybody's code; one of a single size is exported at that size
            torch.manual_seed(0)
            return create(name, size).eval(), False
    return model, True
