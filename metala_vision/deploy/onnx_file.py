"""A model as a graph of ONNX, in plain operators, and as OpenVINO's form of it."""

import json
import logging
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metala_vision.description import plain
from metala_vision.errors import InputError
from metala_vision.kernels import available_backends, backend

from .job import Job, first_line
from .runtimes import KEY


def write_onnx(model: nn.Module, file: Path, job: Job) -> None:
    """Writes a file of ONNX.

    Raises:
        InputError: torch's exporter does not take the model or does not write the opset.
    """
    from .onnx_operators import simplify, translations
    from .precision import halve, quantize

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own, about its own code
        logger = logging.getLogger("torch.onnx")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            program = job.program(model)
            # Their shapes are asked of the kernels, where there are any: the composed forms take minutes to trace.
            kernels = backend("cpu") if "cpu" in available_backends() else nullcontext()
            with kernels:
                graph: Any = torch.onnx.export(
                    program,
                    dynamo=True,
                    input_names=["image"],
                    output_names=job.outputs,
                    opset_version=job.opset,
                    verbose=False,
                    optimize=False,
                    custom_translation_table=translations(),
                )
            simplify(graph.model)
        except InputError:
            raise
        except Exception as error:  # torch's exporter raises whatever its parts raise
            raise InputError(f"export: torch cannot export this model: {first_line(error)}") from error
        finally:
            logger.setLevel(level)
    if (made := graph.model.opset_imports.get("")) != job.opset:
        raise InputError(
            f"opset: got {job.opset}, which torch {torch.__version__} does not write: it has written {made}"
        )
    for axis, name in job.open_axes.items():
        graph.model.graph.inputs[0].shape[axis] = name
    if job.described:
        graph.model.metadata_props[KEY] = json.dumps(plain(job.described, "description"))
    graph.save(str(file))
    if job.precision == "float16":
        halve(file)
    elif job.precision == "int8":
        quantize(file, job.calibration)


def write_openvino(model: nn.Module, file: Path, job: Job) -> None:
    """Writes a file of OpenVINO with its weights beside it; raises what `write_onnx` raises."""
    import openvino

    graph, half = file.with_name("graph.onnx"), job.precision == "float16"
    write_onnx(model, graph, job._replace(precision="float32") if half else job)
    converted = openvino.convert_model(str(graph))
    if job.described:
        converted.set_rt_info(json.dumps(plain(job.described, "description")), [KEY])
    openvino.save_model(converted, str(file), compress_to_fp16=half)
    graph.unlink()
