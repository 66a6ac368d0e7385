"""The runtimes that run exported files: onnxruntime, OpenVINO and PyTorch's, each with one call for all of them."""

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
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


ENDINGS = {".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "torch"}  # of files, and what runs them by default
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # and OpenVINO's names for them


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


def runtime(
    name: str,
    file: str | Path,
    threads: int | None = None,
    precision: str = "float32",
    shape: Sequence[int] | None = None,
) -> Runtime:
    """A file in a runtime.

    Args:
        name: "onnxruntime", "openvino", which takes files of ONNX too, "torch" or "aoti".
        file: as `export` has written it.
        threads: of a run; None is the runtime's own choice.
        precision: "float32", or "bfloat16" for OpenVINO on a processor that computes in it.
        shape: of all images that are to come, [batch, channels, height, width], for OpenVINO, which plans for it and
            takes no others then; None leaves open what the file does. Models with scans are faster
            so. onnxruntime is not, and has no such choice here.

    Raises:
        InputError: the runtime is not known or not installed, does not take the file, or does not compute in this
            precision here.
    """
    if name not in _OPENERS:
        raise InputError(f"runtime: got {name!r}, expected one of {tuple(_OPENERS)}")
    if precision not in PRECISIONS:
        raise InputError(f"precision: got {precision!r}, expected one of {tuple(PRECISIONS)}")
    if name != "openvino" and precision != "float32":
        raise InputError(f"precision: got {precision!r}, but {name} computes in float32 alone on a CPU")
    if name != "openvino" and shape is not None:
        raise InputError(f"shape: got one for {name}, which is not faster for it; leave it out")
    if RUNTIMES[name].reason:
        raise InputError(f"runtime: {name!r} needs {RUNTIMES[name].reason}")
    if not Path(file).is_file():
        raise InputError(f"file: no file {file}")
    try:
        if name == "openvino":
            return _openvino(str(file), threads, PRECISIONS[precision], shape)
        return _OPENERS[name](str(file), threads)
    except InputError:
        raise
    except Exception as error:  # they raise kinds of their own
        raise InputError(f"file: {name} does not take {file}: {_last_line(error)}") from error


def described_runtime(
    file: str | Path, name: str | None = None, threads: int | None = None
) -> tuple[Runtime, dict[str, Any]]:
    """A file in a runtime, and what it says of its model.

    Args:
        file: as `export` has written it.
        name: of the runtime; None goes by the file's ending.
        threads: of a run; None is the runtime's own choice.

    Raises:
        InputError: what `runtime` raises, or a file that says nothing.
    """
    opened = runtime(name or ENDINGS[Path(file).suffix], file, threads)
    if not opened.metadata:
        raise InputError(
            f"file: {file} does not say what it is; expected one of metala_vision.export for a known model"
        )
    return opened, json.loads(opened.metadata)


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _onnxruntime(file: str, threads: int | None) -> Runtime:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Threads spin within a run, which is faster than to sleep there, but not after it, where others want the processor.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    metadata = session.get_modelmeta().custom_metadata_map.get(KEY, "")
    return Runtime(lambda images: session.run(None, {image.name: images}), metadata)


def _openvino(file: str, threads: int | None, hint: str, shape: Sequence[int] | None) -> Runtime:
    import openvino

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        # OpenVINO takes the hint all the same, and computes in float32.
        raise InputError("precision: got 'bfloat16', in which OpenVINO does not compute on this processor")
    model = core.read_model(file)
    metadata = str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else ""
    if file.endswith(".onnx"):  # whose metadata OpenVINO leaves out
        import onnx

        known = onnx.load(file, load_external_data=False).metadata_props
        metadata = next((entry.value for entry in known if entry.key == KEY), "")
    if shape is not None:
        model.reshape(list(shape))
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


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """PyTorch with as many threads, or as it is; they belong to the process, and are what they were afterwards."""
    former = torch.get_num_threads()
    torch.set_num_threads(former if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def _on_threads(model: Callable[[Tensor], Any], threads: int | None) -> Callable[[Any], list]:
    """A run of PyTorch."""

    def run(images: Any) -> list:
        with torch.inference_mode(), torch_threads(threads):
            found = model(torch.from_numpy(images))
        return [output.numpy() for output in ([found] if isinstance(found, Tensor) else found)]

    return run


_OPENERS: dict[str, Callable[..., Runtime]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "torch": _torch,
    "aoti": _aoti,
}
