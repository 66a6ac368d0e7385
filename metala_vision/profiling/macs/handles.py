"""What fvcore needs to count every operator of a vision model.

Convention: one multiply-accumulate (MAC) counts as one, as in fvcore and in most papers' "FLOPs"; a norm counts 5 (4
without weights) per element, batch norm 2, pooling and upsampling as fvcore counts them; element-wise work, softmax,
reductions and copies count nothing.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from math import prod

from metala_vision.errors import InputError
from metala_vision.kernels.flops import fvcore_handles

with warnings.catch_warnings():
    # fvcore scripts a function while it is imported, which its users cannot change
    warnings.filterwarnings("ignore", ".torch.jit.script. is (deprecated|not supported)")
    try:
        from fvcore.nn import jit_handles
        from fvcore.nn.jit_analysis import JitModelAnalysis
    except ImportError as error:
        raise InputError(
            "multiply-accumulates are counted by fvcore, which is not installed: pip install fvcore"
        ) from error

__all__ = [
    "ACTIVATIONS",
    "CHUNKWISE",
    "FREE",
    "NOTES",
    "NOT_PRODUCTS",
    "RECURRENT",
    "JitModelAnalysis",
    "counting_handles",
]

# Operators that count nothing by the convention above; their in-place forms go by the same name.
_FREE = """
    abs add alias amax amin argmax avg_pool2d ceil celu clamp_max clamp_min clone col2im concat constant_pad_nd cos
    cumsum div elu erf exp exp2 expand_as feature_dropout flip gelu glu hardsigmoid hardswish hardtanh im2col item
    le leaky_relu lift_fresh linalg_vector_norm linspace log log1p log_sigmoid log_softmax lt max_pool2d maximum
    mean meshgrid min mish mul ne neg norm ones_like pad pixel_shuffle pixel_unshuffle pow prelu reciprocal
    reflection_pad2d relu6 repeat repeat_interleave replication_pad2d reshape_as rsqrt rsub scalar_tensor selu
    sigmoid silu sin softmax softplus sqrt std sub sum swapaxes tanh tile tril triu unflatten unfold var var_mean
    where zero
"""
FREE = frozenset("aten::" + name for name in _FREE.split())
# What one trace counts beside the operators' MACs; the second and third are the MACs of our own operators alone.
ACTIVATIONS, RECURRENT, CHUNKWISE = NOTES = ("activations", "recurrent", "chunkwise")


def _shape(value) -> list[int]:
    return value.type().sizes()


def _attention(inputs: list, _) -> int:
    """q [..., L, D], k [..., S, D], v [..., S, E]: scores and their product with v; a mask saves nothing."""
    q, k, v = (_shape(x) for x in inputs[:3])
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _matmul(inputs: list, outputs: list) -> int:
    """Counts batch dimensions that broadcast, which fvcore's own count leaves out."""
    return prod(_shape(outputs[0]) or [1]) * _shape(inputs[0])[-1]


def _baddbmm(inputs: list, outputs: list) -> int:
    return prod(_shape(outputs[0])) * _shape(inputs[1])[-1]


def _einsum(inputs: list, _) -> int:
    """The product of the sizes of all indices of two operands, as nested loops over them would multiply."""
    equation = inputs[0].toIValue().replace(" ", "")
    operands = equation.partition("->")[0].split(",")
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    if len(operands) != 2 or "." in equation:
        raise InputError(f"einsum {equation!r} is not counted: expected two operands and no ellipsis")
    return prod({index: size for names, shape in zip(operands, shapes) for index, size in zip(names, shape)}.values())


def counting_handles() -> dict[str, Callable | None]:
    """Operator -> Counter of its MACs by name, of the elements it writes and, for ours, of its MACs by either form."""
    recurrent, chunkwise = fvcore_handles("recurrent"), fvcore_handles("chunkwise")
    handles = {name: _with_activations(name, handle) for name, handle in {**_PRODUCTS, **recurrent}.items()}
    for name, chunks in chunkwise.items():
        counted, steps = handles[name], recurrent[name]
        if counted is not None and steps is not None and chunks is not None:  # else it counts nothing in any form
            handles[name] = _with_chunkwise(counted, steps, chunks)
    return handles | {name: _named(name, handle) for name, handle in _OTHERS.items()}


_PRODUCTS: dict[str, Callable] = {
    "aten::_convolution": jit_handles.conv_flop_jit,
    "aten::addmm": jit_handles.addmm_flop_jit,
    "aten::baddbmm": _baddbmm,
    "aten::bmm": jit_handles.bmm_flop_jit,
    "aten::einsum": _einsum,
    "aten::linear": jit_handles.linear_flop_jit,
    "aten::matmul": _matmul,
    "aten::mm": _matmul,
    "aten::scaled_dot_product_attention": _attention,
}
_OTHERS: dict[str, Callable] = {
    "aten::_upsample_bicubic2d_aa": jit_handles.elementwise_flop_counter(0, 16),
    "aten::_upsample_bilinear2d_aa": jit_handles.elementwise_flop_counter(0, 4),
    "aten::adaptive_avg_pool2d": jit_handles.elementwise_flop_counter(1, 0),
    "aten::batch_norm": jit_handles.batchnorm_flop_jit,
    "aten::grid_sampler": jit_handles.elementwise_flop_counter(0, 4),
    "aten::group_norm": jit_handles.norm_flop_counter(2),
    "aten::instance_norm": jit_handles.norm_flop_counter(1),
    "aten::layer_norm": jit_handles.norm_flop_counter(2),
    "aten::rms_norm": jit_handles.norm_flop_counter(2),
    "aten::upsample_bicubic2d": jit_handles.elementwise_flop_counter(0, 16),
    "aten::upsample_bilinear2d": jit_handles.elementwise_flop_counter(0, 4),
    "aten::upsample_nearest2d": jit_handles.elementwise_flop_counter(0, 1),
}


def _with_activations(name: str, handle: Callable | None) -> Callable | None:
    if handle is None:
        return None

    def counted(inputs: list, outputs: list) -> Counter:
        number = handle(inputs, outputs)
        macs = sum(number.values()) if isinstance(number, Counter) else number
        return Counter({_short(name): macs, ACTIVATIONS: prod(_shape(outputs[0]) or [1])})

    return counted


def _with_chunkwise(counted: Callable, recurrent: Callable, chunkwise: Callable) -> Callable:
    def both(inputs: list, outputs: list) -> Counter:
        forms = {RECURRENT: recurrent(inputs, outputs), CHUNKWISE: chunkwise(inputs, outputs)}
        return Counter(counted(inputs, outputs) | forms)

    return both


def _named(name: str, handle: Callable) -> Callable:
    return lambda inputs, outputs: Counter({_short(name): handle(inputs, outputs)})


def _short(name: str) -> str:
    return name.partition("::")[2].lstrip("_")


NOT_PRODUCTS = tuple(_short(name) for name in _OTHERS)
