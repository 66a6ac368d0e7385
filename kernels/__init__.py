"""Gated linear attention, the operator under every MetaLA layer. Needs torch alone."""

from .ops import GATE_FLOOR, SCAN_ORDERS, available_backends, gated_linear_attention
from .reference import attention_map, scan_order

__all__ = [
    "GATE_FLOOR",
    "SCAN_ORDERS",
    "attention_map",
    "available_backends",
    "gated_linear_attention",
    "scan_order",
]
