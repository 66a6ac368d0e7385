"""Files for the runtimes of graphs, each held against the model before it is left behind."""

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metala_vision.errors import InputError

from .calibration import calibration_images, check_calibration
from .detection_graph import OUTPUTS as DETECTION_OUTPUTS
from .job import Job
from .onnx_file import write_onnx, write_openvino
from .runtimes import RUNTIMES, Runtime, runtime
from .source import graph_of, model_of
from .torch_file import write_aoti, write_torch


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        ending: of its name.
        write: writes it.
        needs: packages of `RUNTIMES` without which it cannot be written.
        runtimes: those that it is run by after writing, where they are installed.
    """

    ending: str
    write: Callable[[nn.Module, Path, Job], None]
    needs: tuple[str, ...]
    runtimes: tuple[str, ...]


FORMATS = {
    "onnx": Format(".onnx", write_onnx, ("onnxruntime", "onnx"), ("onnxruntime", "openvino")),
    "openvino": Format(".xml", write_openvino, ("openvino", "onnx"), ("openvino",)),
    "torch": Format(".pt2", write_torch, (), ("torch",)),
    "aoti": Format(".pt2", write_aoti, (), ("aoti",)),
}
DYNAMIC = ("batch", "size")
OPSET = 20
# Largest difference over the largest number. Of int8 it tells a broken file from a rounded one, no more.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "int8": 0.7}
LEAST = 256  # pixels of the sides of images that a detector is tried with


def export(
    source: str | Path | nn.Module,
    file: str | Path,
    format: str | None = None,
    dynamic: Sequence[str] = DYNAMIC,
    img_size: int | tuple[int, int] | None = None,
    opset: int = OPSET,
    precision: str = "float32",
    calibration: str | Path | Sequence[Tensor] | None = None,
    check_sizes: Sequence[int | tuple[int, int]] = (),
    **arguments: Any,
) -> dict:
    """Writes a model for onnxruntime, OpenVINO, PyTorch and other runtimes, and runs the file against the model.

    It takes float images [batch, channels, height, width] as "image", normalised as its description says, and gives
    "logits", "map0", "map1", ... of features, or "boxes", "scores" and "levels" of a detector, see `DetectionGraph`. It
    has as many operators for an image of any size, and scans remember the share of the image that they remember in the
    model. A file of "onnx" or "openvino" has plain operators of ONNX alone. A program of "torch" calls our kernels:
    `import metala_vision` before it is loaded by torch.export.load. A package of "aoti" has operators of PyTorch alone,
    compiled for this kind of processor, and runs without Python.

    Args:
        source: a model in evaluation mode, in float32 and on the CPU, or what `model_of` takes: a checkpoint, a
            published folder, a name of timm.
        file: to write. OpenVINO writes the weights beside it, with the ending .bin.
        format: "onnx", "openvino", "torch" or "aoti"; None goes by the ending of `file`, .onnx, .xml, or .pt2 for
            "torch". "aoti" needs a C++ compiler, and minutes.
        dynamic: what is left open, out of "batch" and "size".
        img_size: height and width of the images in pixels, or the side of a square; None is the model's own. Where the
            size is left open, others are taken too.
        opset: of ONNX, 20 or later.
        precision: "float32"; "float16", which stores weights in half as many bytes and computes as before; or "int8",
            whose products with weights are of 8-bit integers. Scans stay float32 in all.
        calibration: for "int8", a folder of images (64 of them are taken) or prepared images [1, C, H, W], to which the
            ranges of activations are fitted. Without them they are found at each run, and OpenVINO would make float32
            of such a file.
        check_sizes: of images that the file is tried with, as `img_size`, beside its own; empty is two others that no
            patches fit.
        arguments: of `timm.create_model`, such as `features_only=True`.

    Returns:
        dict(file, format, precision, inputs, outputs, bytes, differences), with the largest difference over the largest
        number for each runtime and shape of images.

    Raises:
        InputError: an argument that does not fit, a package that is not installed, a model that cannot be exported, a
            place that cannot be written, or a file that gives other numbers than the model, which is not left behind.
    """
    file = Path(file)
    format = _format(file, format)
    if unknown := [name for name in dynamic if name not in DYNAMIC]:
        raise InputError(f"dynamic: got {unknown[0]!r}, expected some of {DYNAMIC}")
    if opset < OPSET:
        raise InputError(f"opset: got {opset}, expected {OPSET} or later")
    if precision not in TOLERANCES:
        raise InputError(f"precision: got {precision!r}, expected one of {tuple(TOLERANCES)}")
    if precision != "float32" and "onnx" not in FORMATS[format].needs:
        raise InputError(f"precision: got {precision!r}, but a file of {format!r} has float32 alone; 'onnx' has others")
    if calibration is not None and precision != "int8":
        raise InputError(f"calibration: got images for {precision!r}, which needs none; precision='int8' does")
    if format == "openvino" and precision == "int8" and calibration is None:
        raise InputError(
            "calibration: got none, and OpenVINO makes float32 of int8 without it; give a folder or prepared images"
        )
    sides = None if img_size is None else _sides("img_size", img_size)
    tried = [_sides("check_sizes", size) for size in check_sizes]
    if tried and "size" not in dynamic:
        raise InputError(
            f"check_sizes: got {list(check_sizes)} for a file of one size; dynamic=['size'] leaves it open"
        )
    kind = FORMATS[format]
    if missing := [RUNTIMES[name].reason for name in kind.needs if RUNTIMES[name].reason]:
        raise InputError(f"format: {format!r} needs {missing[0]}")
    if not isinstance(source, nn.Module):
        model, described = model_of(source, **arguments)
    elif arguments:
        raise InputError(f"arguments: got {', '.join(arguments)} for a model that is made already")
    else:
        model, described = graph_of(source)
    _check_model(model)
    shapes = _shapes(described, dynamic, sides, tried)
    if described:
        described = {**described, "dynamic": list(dynamic)}
        described |= {} if sides is None else {"input_size": [shapes[0][1], *sides]}
    task = described.get("task")
    if calibration is not None and not isinstance(calibration, str | Path):
        calibration = check_calibration(calibration, shapes[0], "size" in dynamic)
    images = [_images(shape, task) for shape in shapes]
    wanted = _tried(model, images)
    if isinstance(calibration, str | Path):
        calibration = calibration_images(calibration, described, shapes[0][2:])
    job = Job(shapes[0], tuple(dynamic), opset, described, _names(wanted[0], task), precision, calibration)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".export_") as folder:
            written = Path(folder) / file.name
            kind.write(model, written, job)
            differences = {
                name: _differences(runtime(name, written), images, wanted)
                for name in kind.runtimes
                if not RUNTIMES[name].reason
            }
            _check(differences, TOLERANCES[precision])
            parts = sorted(Path(folder).iterdir())
            size = sum(part.stat().st_size for part in parts)
            for part in parts:
                os.replace(part, file.parent / part.name)
    except OSError as error:
        raise InputError(f"file: {file} cannot be written: {error}") from error
    known = dict(file=str(file), format=format, precision=precision, inputs=["image"], outputs=job.outputs)
    return dict(known, bytes=size, differences=differences)


def _check_model(model: nn.Module) -> None:
    if model.training:
        raise InputError("source: the model is in training mode; call its eval() first")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"source: {name} is {dtype} on {tensor.device}, expected float32 on the CPU; export model.float().cpu()"
            )


def _format(file: Path, format: str | None) -> str:
    if file.is_dir():
        raise InputError(f"file: {file} is a folder, expected a file to write")
    if format is None:
        found = [name for name, kind in FORMATS.items() if file.suffix == kind.ending]
        if not found:
            endings = " or ".join(dict.fromkeys(kind.ending for kind in FORMATS.values()))
            raise InputError(f"file: got {file}, expected one that ends in {endings}")
        return found[0]
    if format not in FORMATS:
        raise InputError(f"format: got {format!r}, expected one of {tuple(FORMATS)}")
    if file.suffix != (ending := FORMATS[format].ending):
        raise InputError(f"file: got {file}, expected one that ends in {ending} for the format {format!r}")
    return format


def _sides(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = sides = (size, size) if isinstance(size, int) else size if len(size) == 2 else (0, 0)
    if height < 1 or width < 1:
        raise InputError(f"{name}: got {size}, expected pixels of a side, or height and width")
    return sides


def _shapes(
    described: dict, dynamic: Sequence[str], sides: tuple[int, int] | None, tried: Sequence[tuple[int, int]]
) -> list[tuple[int, int, int, int]]:
    """Shapes of images: that of the export, and others that the file is tried with, where it leaves something open."""
    channels, *known = described.get("input_size") or (3, 224, 224)
    height, width = sides or known
    if described.get("task") == "detection" and "size" in dynamic:
        # Of smaller images the last map has one step, whose GroupNorm of few channels makes much of the last digit.
        height, width = max(height, LEAST), max(width, LEAST)
    # None of them is a multiple of the patches of any model, beside the first.
    others = tried or ((height * 5 // 8 + 3, width), (height + 19, width * 3 // 2 + 5))
    sizes = [(height, width), *(others if "size" in dynamic else ((height, width),) * 2)]
    batches = (2, 3, 1) if "batch" in dynamic else (1,)
    return list(dict.fromkeys((batch, channels, *size) for batch, size in zip(itertools.cycle(batches), sizes)))


def _images(shape: tuple[int, ...], task: str | None) -> Tensor:
    """Random images as the model expects them: those of a detector are in [0, 1], all others normalised."""
    random = torch.rand if task == "detection" else torch.randn
    return random(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _tried(model: nn.Module, batches: Sequence[Tensor]) -> list[list[Tensor]]:
    """What the model itself gives for these images."""
    found = []
    for images in batches:
        size = "x".join(map(str, images.shape[2:]))
        try:
            outputs = model(images)
        except Exception as error:  # a model is anybody's code
            hint = "; dynamic=('batch',), without check_sizes, keeps the size fixed"
            hint = hint if images.shape[2:] != batches[0].shape[2:] else ""
            raise InputError(f"export: the model takes no images of {size} pixels: {error}{hint}") from error
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        if not isinstance(outputs, list | tuple) or not outputs or not all(isinstance(x, Tensor) for x in outputs):
            raise InputError(f"export: the model gives a {type(outputs).__name__}, expected a tensor or a list of them")
        if not all(x.isfinite().all() for x in outputs):
            raise InputError(f"export: the model gives numbers that are not finite for images of {size} pixels")
        found.append(list(outputs))
    return found


def _names(outputs: Sequence[Tensor], task: str | None) -> list[str]:
    if task == "detection":
        return list(DETECTION_OUTPUTS)
    logits = task == "segmentation" or (outputs[0].ndim == 2 and len(outputs) == 1)
    return ["logits"] if logits else [f"map{i}" for i in range(len(outputs))]


def _differences(other: Runtime, batches: Sequence[Tensor], wanted: Sequence[list[Tensor]]) -> dict[str, float]:
    """The largest difference over the largest number, by the shape of the images."""
    found = {}
    for images, ours in zip(batches, wanted):
        theirs = other(images)
        same = len(theirs) == len(ours)
        differences = [_difference(x, y) for x, y in zip(theirs, ours)] if same else [float("inf")]
        found["x".join(map(str, images.shape))] = max(differences)
    return found


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape or not found.isfinite().all():
        return float("inf")
    found, wanted = found.double(), wanted.double()  # numbers of levels are integers
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def _check(differences: dict[str, dict[str, float]], tolerance: float) -> None:
    for name, by_shape in differences.items():
        for images, difference in by_shape.items():
            if not difference <= tolerance:
                raise InputError(
                    f"export: {name} gives other numbers for images of {images}: they differ by {difference:.1e} of "
                    f"the largest, expected at most {tolerance:g}; the file is not kept"
                )
