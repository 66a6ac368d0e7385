"""Gated linear attention, the operator under every MetaLA layer, and what is fused around it. Needs torch alone."""

from pathlib import Path

# In a checkout the modules stand in the folder `kernels` at its root. That folder has no __init__.py of its own: with
# the checkout on sys.path it would be imported for the package `kernels` of somebody else.
_folder = Path(__file__).resolve().parents[2] / "kernels"
if not Path(__file__).with_name("ops.py").exists() and (_folder / "ops.py").exists():
    __path__.append(str(_folder))

from . import flops  # noqa: E402  (after the package path is complete)
from .backends import available_backends, backend  # noqa: E402
from .ops import (  # noqa: E402
    add_mixer,
    add_swiglu_mlp,
    conv_silu,
    conv_swiglu,
    gated_linear_attention,
    mixer,
    patches,
    swiglu,
    swiglu_mlp,
)
from .reference import GATE_FLOOR, GATE_TEMPERATURE, SCAN_ORDERS, attention_map, scan_order  # noqa: E402

__all__ = [
    "GATE_FLOOR",
    "GATE_TEMPERATURE",
    "SCAN_ORDERS",
    "add_mixer",
    "add_swiglu_mlp",
    "attention_map",
    "available_backends",
    "backend",
    "conv_silu",
    "conv_swiglu",
    "flops",
    "gated_linear_attention",
    "mixer",
    "patches",
    "scan_order",
    "swiglu",
    "swiglu_mlp",
]
