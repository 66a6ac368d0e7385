"""The runtimes that run exported files: onnxruntime, OpenVINO and PyTorch's, each with one call for all of them."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metala_vision.errors import InputError

KEY = "metala_vision"  # of what a file says of its model


class Package(NamedTuple):
    """A package that may be installed."""

    module: str
    wanted: str

    @property
    def reason(self) -> str:
        """Why it cannot be used; empty if it can."""
        there = importlib.util.find_spec(self.module) is not None
        return "" if there else f"{self.module}, which is not installed: pip install {self.wanted}"


RUNTIMES = {
    "onnx": Package("onnxscript", "onnx onnxscript onnxruntime"),
    "onnxruntime": Package("onnxruntime", "onnxruntime"),
    "openvino": Package("openvino", "openvino"),
    "torch": Package("torch", "torch"),
    "aoti": Package("torch", "torch"),
}


class Runtime:
    """An exported file in a runtime: images [B, C, H, W] -> a list of its outputs, on the CPU.

    Attributes:
        metadata: what the file says of its model, as JSON; empty where it says nothing.
    """

    def __init__(self, run: Callable[[Any], list], metadata: str):
        self._run, self.metadata = run, metadata

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Float32 images [B, C, H, W] -> the outputs, on the CPU.

        Raises:
            InputError: the file does not take images of this shape.
        """
        try:
            found = self._run(images.detach().float().cpu().contiguous().numpy())
        except Exception as error:  # runtimes raise kinds of their own
            raise InputError(f"images: the file does not take {tuple(images.shape)}: {_last_line(error)}") from error
        return [torch.from_numpy(output.copy()) for output in found]


def runtime(name: str, file: str | Path, threads: int | None = None) -> Runtime:
    """A file in a runtime.

    Args:
        name: "onnxruntime", "openvino", which takes files of ONNX too, "torch" or "aoti".
        file: as `export` has written it.
        threads: of a run; None is the runtime's own choice.

    Raises:
        InputError: the runtime is not known or not installed, or does not take the file.
    """
    if name not in _OPENERS:
        raise InputError(f"runtime: got {name!r}, expected one of {tuple(_OPENERS)}")
    if RUNTIMES[name].reason:
        raise InputError(f"runtime: {name!r} needs {RUNTIMES[name].reason}")
    if not Path(file).is_file():
        raise InputError(f"file: no file {file}")
    try:
        return _OPENERS[name](str(file), threads)
    except Exception as error:  # they raise kinds of their own
        raise InputError(f"file: {name} does not take {file}: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _onnxruntime(file: str, threads: int | None) -> Runtime:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    metadata = session.get_modelmeta().custom_metadata_map.get(KEY, "")
    return Runtime(lambda images: session.run(None, {image.name: images}), metadata)


def _openvino(file: str, threads: int | None) -> Runtime:
    import openvino

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    model = core.read_model(file)
    metadata = str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else ""
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def run(images: Any) -> list:
        found = request.infer({0: images})
        return [found[output] for output in compiled.outputs]

    return Runtime(run, metadata)


def _torch(file: str, threads: int | None) -> Runtime:
    described = {KEY: ""}
    module = torch.export.load(file, extra_files=described).module()
    return Runtime(_on_threads(module, threads), described[KEY])


def _aoti(file: str, threads: int | None) -> Runtime:
    package = torch._inductor.aoti_load_package(file)
    return Runtime(_on_threads(package, threads), package.loader.get_metadata().get(KEY, ""))


def _on_threads(model: Callable[[Tensor], Any], threads: int | None) -> Callable[[Any], list]:
    """A run of PyTorch, whose number of threads belongs to the process: it is what it was after each run."""

    def run(images: Any) -> list:
        former = torch.get_num_threads()
        torch.set_num_threads(former if threads is None else threads)
        try:
            with torch.inference_mode():
                found = model(torch.from_numpy(images))
        finally:
            torch.set_num_threads(former)
        return [output.numpy() for output in ([found] if isinstance(found, Tensor) else found)]

    return run


_OPENERS = {"onnxruntime": _onnxruntime, "openvino": _openvino, "torch": _torch, "aoti": _aoti}
