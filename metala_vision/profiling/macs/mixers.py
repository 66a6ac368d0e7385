"""Multiply-accumulates of the token mixers, derived by hand from their definitions, for one image."""

from collections.abc import Callable
from typing import Any

from torch import nn

from metala_vision.layers.mixers import GLA, HGRN, SSD, InLine, MetaLA, Normalized, RetNet, Softmax, ZeroS
from metala_vision.layers.mixers.gla import RANK


def of_mixer(mixer: nn.Module, tokens: int) -> tuple[int, int] | None:
    """Products (and scans) on N `tokens`, and what norms count for; None for a mixer that is not known here.

    Of width C in each: C times the widths of the parts, C^2 for the last projection, 9 C for the 3x3 convolution (4 C
    for the causal one), and what happens between tokens.
    """
    between = _BETWEEN.get(type(mixer))
    if between is None:
        return None
    known: Any = mixer
    dim = known.dim
    conv = sum(p.numel() for p in known.conv.parameters())
    products, others = between(known, tokens)
    return tokens * (dim * sum(known.widths) + dim * dim + conv) + products, others


def _scans(tokens: int, orders: int, heads: int, key: int, value: int) -> int:
    """H heads, 3 K V an order to decay, update and read a state, and K + V for a token's own term."""
    return tokens * heads * (3 * orders * key * value + key + value)


def _metala(mixer: Any, tokens: int) -> tuple[int, int]:
    """The scans, and H (2 K + V) for self-augmentation; its norm is inside of the operator."""
    heads, key, value = mixer.num_heads, mixer.key_dim, mixer.value_dim
    return _scans(tokens, len(mixer.scan), heads, key, value) + tokens * heads * (2 * key + value), 0


def _gated(mixer: Any, tokens: int) -> tuple[int, int]:
    """The scans, and a norm of 4 C; the second product of GLA's decay is from RANK to C / 2."""
    products = _scans(tokens, len(mixer.scan), mixer.num_heads, mixer.key_dim, mixer.value_dim)
    if type(mixer) is GLA:
        products += tokens * RANK * mixer.dim // 2
    return products, 4 * tokens * mixer.dim


def _hgrn(mixer: Any, tokens: int) -> tuple[int, int]:
    """A head of K = V = 1 for each channel, and a norm of 4 C."""
    return _scans(tokens, len(mixer.scan), mixer.dim, 1, 1), 4 * tokens * mixer.dim


def _softmax(mixer: Any, tokens: int) -> tuple[int, int]:
    """Scores and their product with the values."""
    return 2 * tokens * tokens * mixer.dim, 0


def _inline(mixer: Any, tokens: int) -> tuple[int, int]:
    """k^T v and its product with q, the 3x3 residual, and once an image the products that make its weights."""
    dim = mixer.dim
    return tokens * (2 * dim * mixer.value_dim + 9 * dim) + 10 * dim * dim // mixer.num_heads, 0


def _normalized(mixer: Any, tokens: int) -> tuple[int, int]:
    """k^T v and its product with q; a scan if it is causal."""
    if mixer.causal:
        return _scans(tokens, 1, mixer.num_heads, mixer.value_dim, mixer.value_dim), 0
    return 2 * tokens * mixer.dim * mixer.value_dim, 0


def _zeros(mixer: Any, tokens: int) -> tuple[int, int]:
    """k^T v in two weightings, their products with q, and a norm of 4 C; scans of three weightings if it is causal."""
    if mixer.causal:
        scans = _scans(tokens, 1, 3 * mixer.num_heads, mixer.value_dim, mixer.value_dim)
        return scans, 4 * tokens * mixer.dim
    return 4 * tokens * mixer.dim * mixer.value_dim, 4 * tokens * mixer.dim


_BETWEEN: dict[type, Callable[[Any, int], tuple[int, int]]] = {
    MetaLA: _metala,
    GLA: _gated,
    RetNet: _gated,
    SSD: _gated,
    HGRN: _hgrn,
    Softmax: _softmax,
    InLine: _inline,
    Normalized: _normalized,
    ZeroS: _zeros,
}
