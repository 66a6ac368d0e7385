"""Gated linear attention, the operator under every MetaLA layer, and what is fused around it. Needs torch alone."""

from . import flops
from .ops import (
    add_mixer,
    add_swiglu_mlp,
    available_backends,
    conv_silu,
    gated_linear_attention,
    mixer,
    patches,
    swiglu,
    swiglu_mlp,
)
from .reference import GATE_FLOOR, GATE_TEMPERATURE, SCAN_ORDERS, attention_map, scan_order

__all__ = [
    "GATE_FLOOR",
    "GATE_TEMPERATURE",
    "SCAN_ORDERS",
    "add_mixer",
    "add_swiglu_mlp",
    "attention_map",
    "available_backends",
    "conv_silu",
    "flops",
    "gated_linear_attention",
    "mixer",
    "patches",
    "scan_order",
    "swiglu",
    "swiglu_mlp",
]
