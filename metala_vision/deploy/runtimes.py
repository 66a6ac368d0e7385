"""The runtimes that run exported files: onnxruntime and OpenVINO, each with one call for all of them."""

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
}


ENDINGS = {".onnx": "onnxruntime", ".xml": "openvino"}  # of files, and what runs them where nothing else is asked for


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
        except Exception as error:  # both runtimes raise kinds of their own
            raise InputError(f"images: the file does not take {tuple(images.shape)}: {_last_line(error)}") from error
        return [torch.from_numpy(output.copy()) for output in found]


def runtime(name: str, file: str | Path, threads: int | None = None) -> Runtime:
    """A file in a runtime.

    Args:
        name: "onnxruntime" or "openvino"; the latter takes files of ONNX too.
        file: as `export` has written it.
        threads: of a run; None is the runtime's own choice.

    Raises:
        InputError: the runtime is not known or not installed, or does not take the file.
    """
    if name not in ("onnxruntime", "openvino"):
        raise InputError(f"runtime: got {name!r}, expected 'onnxruntime' or 'openvino'")
    if RUNTIMES[name].reason:
        raise InputError(f"runtime: {name!r} needs {RUNTIMES[name].reason}")
    if not Path(file).is_file():
        raise InputError(f"file: no file {file}")
    try:
        return (_onnxruntime if name == "onnxruntime" else _openvino)(str(file), threads)
    except Exception as error:  # both raise kinds of their own
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
