"""Files of fewer bytes: weights in half precision, and products of 8-bit integers.

Only what belongs to weights changes. Scans, gates, norms and softmax stay in float32: products whose operands are both
computed, as those of a scan are, have no weight.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from torch import Tensor

from metala_vision.errors import InputError

LEAST = 1024  # numbers of a weight that is worth it
HALF_LARGEST = 65504.0  # of float16


def halve(file: Path) -> None:
    """Stores the weights of a file of ONNX in float16; runtimes widen them when they load it, and compute as before.

    Raises:
        InputError: a weight has numbers beyond those of float16.
    """
    model = ir.load(file)
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < LEAST:
            continue
        numbers = tensor.numpy()
        if np.abs(numbers).max() > HALF_LARGEST:
            raise InputError(f"precision: {name} has numbers beyond {HALF_LARGEST:g}, which float16 cannot hold")
        stored = ir.Value(name=f"{name}_half", const_value=ir.tensor(numbers.astype(np.float16), name=f"{name}_half"))
        stored.shape, stored.type = value.shape, ir.TensorType(ir.DataType.FLOAT16)
        wide = ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT}, name=f"{name}_wide")
        wide.outputs[0].shape, wide.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
        for node, index in value.uses():
            node.replace_input_with(index, wide.outputs[0])
        graph.initializers.pop(name)
        wide.outputs[0].name = name
        graph.initializers.add(stored)
        graph.insert_before(graph[0], wide)
    ir.save(model, file)


def quantize(file: Path, images: Sequence[Tensor] | None) -> None:
    """Makes the products of a file of ONNX with weights products of 8-bit integers, by onnxruntime.

    Weights have a scale for each output channel, and seven bits: with eight, the products of processors without VNNI
    saturate. What comes in has one scale, from `images`, or from what comes in at each run.

    Args:
        file: of ONNX, in float32.
        images: prepared ones [1, C, H, W], whose activations the scales are made for; None finds them at each run.

    Raises:
        InputError: there is no weight to quantize.
    """
    from onnxruntime import quantization

    class Images(quantization.CalibrationDataReader):
        def __init__(self, images: Sequence[Tensor]):
            self.images: Iterator[Tensor] = iter(images)

        def get_next(self) -> Any:
            image = next(self.images, None)
            return None if image is None else {"image": image.numpy()}

    model = onnx.load(file)
    # Matrices and kernels in their place: a position embedding that is resampled is no weight of a product.
    dims = {"MatMul": 2, "Gemm": 2} | ({} if images is None else {"Conv": 4})
    weights = {weight.name: len(weight.dims) for weight in model.graph.initializer if np.prod(weight.dims) >= LEAST}
    products = [node for node in model.graph.node if node.op_type in dims]
    chosen = [node.name for node in products if weights.get(node.input[1]) == dims[node.op_type]]
    if not chosen:
        raise InputError("precision: this model has no product with a weight, so there is nothing for int8")
    options: dict[str, Any] = dict(per_channel=True, reduce_range=True, nodes_to_quantize=chosen)
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a preparation that has been made
    try:
        if images is None:
            quantization.quantize_dynamic(model, file, weight_type=quantization.QuantType.QInt8, **options)
        else:
            types = dict(activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8)
            quantization.quantize_static(model, file, Images(images), **types, **options)
    finally:
        logger.setLevel(level)
