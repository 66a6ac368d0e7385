"""Files for the runtimes of graphs, each held against the model before it is left behind."""

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metala_vision.description import plain
from metala_vision.errors import InputError
from metala_vision.kernels import available_backends, backend

from .runtimes import RUNTIMES, Runtime, runtime
from .source import model_of

FORMATS = {"onnx": ".onnx", "openvino": ".xml"}
KEY = "metala_vision"  # of what a file says of its model
DYNAMIC = ("batch", "size")
OPSET = 20
TOLERANCE = 1e-4  # largest difference over the largest number, float32


def export(
    source: str | Path | nn.Module,
    file: str | Path,
    format: str | None = None,
    dynamic: Sequence[str] = DYNAMIC,
    img_size: int | tuple[int, int] | None = None,
    opset: int = OPSET,
    **arguments: Any,
) -> dict:
    """Writes a model for onnxruntime, OpenVINO and other runtimes of graphs, and runs the file against the model.

    It takes float images [batch, channels, height, width] as "image", normalised as its description says, and gives
    "logits", or "map0", "map1", ... of features. There are plain operators of ONNX alone in it, as many for an image of
    any size, and scans remember the share of the image that they remember in the model.

    Args:
        source: a model in evaluation mode, or what `model_of` takes: a checkpoint, a published folder, a name of timm.
        file: to write. OpenVINO writes the weights beside it, with the ending .bin.
        format: "onnx" or "openvino"; None goes by the ending of `file`, .onnx or .xml.
        dynamic: what is left open, out of "batch" and "size".
        img_size: height and width of the images, or the side of a square; None is the model's own. Where the size is
            left open, others are taken too.
        opset: of ONNX, 20 or later.
        arguments: of `timm.create_model`, such as `features_only=True`.

    Returns:
        dict(file, format, inputs, outputs, bytes, differences), with the largest difference over the largest number for
        each runtime and shape.

    Raises:
        InputError: an argument that does not fit, a package that is not installed, a model that cannot be exported, or
            a file that gives other numbers than the model, which is not left behind.
    """
    file = Path(file)
    format = _format(file, format)
    if unknown := [name for name in dynamic if name not in DYNAMIC]:
        raise InputError(f"dynamic: got {unknown[0]!r}, expected some of {DYNAMIC}")
    if opset < OPSET:
        raise InputError(f"opset: got {opset}, expected {OPSET} or later")
    names = ("onnxruntime", "openvino") if format == "onnx" else ("openvino",)
    missing = [RUNTIMES[name].reason for name in (names[0], "onnx") if RUNTIMES[name].reason]
    if missing:
        raise InputError(f"format: {format!r} needs {missing[0]}")
    model, described = (source.eval(), {}) if isinstance(source, nn.Module) else model_of(source, **arguments)
    shapes = _shapes(model, described, dynamic, img_size)
    _try(model, shapes)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".export_") as folder:
        written = Path(folder) / file.name
        graph = Path(folder) / "graph.onnx" if format == "openvino" else written
        outputs = _write_onnx(model, graph, shapes[0], dynamic, opset, described)
        if format == "openvino":
            _write_openvino(graph, written, described)
            graph.unlink()
        differences = {
            name: _differences(model, runtime(name, written), shapes) for name in names if not RUNTIMES[name].reason
        }
        _check(differences)
        for part in sorted(Path(folder).iterdir()):
            os.replace(part, file.parent / part.name)
    return dict(
        file=str(file),
        format=format,
        inputs=["image"],
        outputs=outputs,
        bytes=sum(part.stat().st_size for part in (file, file.with_suffix(".bin")) if part.is_file()),
        differences=differences,
    )


def _format(file: Path, format: str | None) -> str:
    if format is None:
        found = [name for name, ending in FORMATS.items() if file.suffix == ending]
        if not found:
            raise InputError(f"file: got {file}, expected one that ends in {' or '.join(FORMATS.values())}")
        return found[0]
    if format not in FORMATS:
        raise InputError(f"format: got {format!r}, expected one of {tuple(FORMATS)}")
    if file.suffix != FORMATS[format]:
        raise InputError(f"file: got {file}, expected one that ends in {FORMATS[format]} for the format {format!r}")
    return format


def _shapes(
    model: Any, described: dict, dynamic: Sequence[str], img_size: int | tuple[int, int] | None
) -> list[tuple[int, int, int, int]]:
    """Shapes of images: that of the export, and those that the file is tried with."""
    inner = getattr(model, "model", model)
    channels, *known = described.get("input_size") or (getattr(inner, "in_chans", 3), *_nominal(inner))
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size or known
    batches = (2, 3, 1) if "batch" in dynamic else (1, 1, 1)
    # None of them is a multiple of the patches of any model, beside the first.
    others = ((height * 5 // 8 + 3, width), (height + 19, width * 3 // 2 + 5))
    sizes = ((height, width), *others) if "size" in dynamic else ((height, width),) * 3
    return [(batch, channels, *size) for batch, size in zip(batches, sizes)]


@torch.no_grad()
def _try(model: nn.Module, shapes: Sequence[tuple[int, ...]]) -> None:
    """Whether the model itself takes these images."""
    for images in shapes:
        try:
            model(torch.zeros(1, *images[1:]))
        except Exception as error:  # a model is anybody's code
            size = "x".join(map(str, images[2:]))
            hint = "; dynamic=('batch',) keeps the size fixed" if images is not shapes[0] else ""
            raise InputError(f"export: the model takes no images of {size} pixels: {error}{hint}") from error


def _nominal(model: Any) -> tuple[int, int]:
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return tuple(size) if size else (224, 224)


def _write_onnx(
    model: nn.Module, file: Path, example: tuple[int, ...], dynamic: Sequence[str], opset: int, described: dict
) -> list[str]:
    """Writes the file; returns the names of its outputs."""
    from .onnx_operators import simplify, translations

    open_axes = {0: "batch"} if "batch" in dynamic else {}
    open_axes |= {2: "height", 3: "width"} if "size" in dynamic else {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own, about its own code
        found = model(torch.zeros(1, *example[1:]))
        outputs = [f"map{i}" for i in range(len(found))] if isinstance(found, list | tuple) else ["logits"]
        # The sides of the example differ: equal ones would be taken for one size.
        height, width = example[2], example[3] + (32 if "size" in dynamic and example[2] == example[3] else 0)
        image = torch.zeros(*example[:2], height, width)
        sides = dict.fromkeys(open_axes, torch.export.Dim.DYNAMIC)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            program = torch.export.export(model, (image,), dynamic_shapes=(sides,))
            # Their shapes are asked of the kernels, where there are any: the composed forms take minutes to trace.
            kernels = backend("cpu") if "cpu" in available_backends() else nullcontext()
            with kernels:
                graph: Any = torch.onnx.export(
                    program,
                    dynamo=True,
                    input_names=["image"],
                    output_names=outputs,
                    opset_version=opset,
                    verbose=False,
                    optimize=False,
                    custom_translation_table=translations(),
                )
            simplify(graph.model)
        except Exception as error:  # torch's exporter raises whatever its parts raise
            raise InputError(f"export: torch cannot export this model: {_first_line(error)}") from error
    axes = {2: "height", 3: "width"}
    for axis, name in open_axes.items():
        graph.model.graph.inputs[0].shape[axis] = axes.get(axis, name)
    if described:
        graph.model.metadata_props[KEY] = json.dumps(plain(described, "description"))
    graph.save(str(file))
    return outputs


def _first_line(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[0] if str(cause).strip() else ''}"


def _write_openvino(graph: Path, file: Path, described: dict) -> None:
    import openvino

    model = openvino.convert_model(str(graph))
    if described:
        model.set_rt_info(json.dumps(plain(described, "description")), [KEY])
    openvino.save_model(model, str(file), compress_to_fp16=False)


@torch.no_grad()
def _differences(model: nn.Module, other: Runtime, shapes: Sequence[tuple[int, ...]]) -> dict[str, float]:
    """The largest difference over the largest number, by the shape of the images."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for images in shapes:
        image = torch.randn(images, generator=generator)
        wanted = model(image)
        pairs = zip(wanted if isinstance(wanted, list | tuple) else [wanted], other(image))
        found["x".join(map(str, images))] = max(_difference(theirs, ours) for ours, theirs in pairs)
    return found


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def _check(differences: dict[str, dict[str, float]]) -> None:
    for name, by_shape in differences.items():
        for images, difference in by_shape.items():
            if not difference <= TOLERANCE:
                raise InputError(
                    f"export: {name} gives other numbers for images of {images}: they differ by {difference:.1e} of "
                    f"the largest, expected at most {TOLERANCE:g}; the file is not kept"
                )
