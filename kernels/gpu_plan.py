"""How the Triton kernels are built and launched: precisions, warps, tiles, chunks, and segments of a sequence.

Shapes: B batch, N tokens, H heads, K key channels, V value channels.
"""

import functools
import os
from typing import NamedTuple

import torch
import triton
from torch import Tensor

AMD = torch.version.hip is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton itself reads it: when a kernel is defined


class Config(NamedTuple):
    """How a kernel is built: the precision of `gpu_common.dot`, Triton's options, and the V channels of a program.

    Left to itself, NVIDIA's assembler aims at 128 registers in a few kernels and spills what is too much: `maxnreg`
    allows these kernels more. It is not set for all, since it makes other kernels spill.
    """

    precision: str
    num_warps: int
    num_stages: int = 1
    BV: int = 64
    maxnreg: int | None = None


# Tokens of a chunk. exp() reaches 16 / 2 * |gate floor| = 40 nats; 32 tokens spill registers in most kernels.
CHUNK = 16
# By kernel; half: q, k and v have 16 bits; wide: K * V > 32 * 64, both padded.
# float32 inputs keep exact products. In half precision the gradients take TF32: bfloat16 would cost the gate's gradient
# its second digit. None of these spills registers on any of the targets of tests/kernels/test_gpu_compile.py.
CONFIGS = {
    ("segment_states", False, False): Config("ieee", 8, maxnreg=255),
    ("segment_states", False, True): Config("ieee", 8, maxnreg=255),
    ("segment_states", True, False): Config("tf32", 4, maxnreg=255),
    ("segment_states", True, True): Config("tf32", 4, BV=32),
    ("outputs", False, False): Config("ieee", 8),
    ("outputs", False, True): Config("ieee", 8),
    ("outputs", True, False): Config("bf16", 4, 2, maxnreg=255),
    ("outputs", True, True): Config("bf16", 4, 2, BV=32),
    ("query_gradients", False, False): Config("ieee", 8),
    ("query_gradients", False, True): Config("ieee", 8),
    ("query_gradients", True, False): Config("tf32", 4),
    ("query_gradients", True, True): Config("tf32", 8),
    ("key_value_gradients", False, False): Config("ieee", 8, maxnreg=255),
    ("key_value_gradients", False, True): Config("ieee", 8),
    ("key_value_gradients", True, False): Config("tf32", 4),
    ("key_value_gradients", True, True): Config("ieee", 8),  # TF32 operands would spill on sm_80
}
# x * y + z in one instruction: set in every launch, since the default differs between releases of Triton.
FUSED = {"enable_fp_fusion": True}


class Plan:
    """What the launches of one call share: sizes, segments, and how each kernel is built."""

    def __init__(self, q: Tensor, gate: Tensor, v: Tensor, k: Tensor | None, grid, scale: float, root: float):
        batch, tokens, heads, key = q.shape
        value = v.shape[-1]
        self.half = all(x is None or x.dtype.itemsize <= 2 for x in (q, v, k))
        self.wide = padded(key) * padded(value) > 32 * 64
        self.chunks = triton.cdiv(tokens, CHUNK)
        wanted = choose_segments(batch * heads, self.chunks, _units(v.device))
        self.segment_chunks = triton.cdiv(self.chunks, wanted)
        self.segments = triton.cdiv(self.chunks, self.segment_chunks)  # none is empty
        self.sequences = batch * heads
        self.inputs = (q, gate, v if k is None else k, v)  # kernels that derive k do not read it, v or not
        self.sizes = (float(scale), float(root), tokens, *grid, heads, self.segments, self.segment_chunks)
        self.widths = {"K": key, "V": value, "KP": padded(key), "VP": padded(value)}
        self.state = (self.widths["KP"], self.widths["VP"])
        self.derived = k is None

    def config(self, kernel: str) -> dict:
        """The kernel's compile-time arguments and options, but for those of the scan order."""
        config = CONFIGS[kernel, self.half, self.wide]
        precision, num_warps = config.precision, config.num_warps
        if INTERPRETED:
            precision = "ieee"  # bfloat16 arithmetic is silently wrong in the interpreter
        elif AMD:
            # Few AMD devices have TF32, and their matrix cores run exact products too. A warp has 64 lanes.
            precision, num_warps = precision.replace("tf32", "ieee"), min(4, num_warps)
        registers = {} if AMD or config.maxnreg is None else {"maxnreg": config.maxnreg}
        return {
            **self.widths,
            **FUSED,
            **registers,
            "BT": CHUNK,
            "DERIVED": self.derived,
            "PRECISION": precision,
            "num_warps": num_warps,
            "num_stages": config.num_stages,
        }

    def tile(self, kernel: str) -> int:
        """Value channels of one program."""
        return min(CONFIGS[kernel, self.half, self.wide].BV, self.widths["VP"])


def choose_segments(sequences: int, chunks: int, units: int) -> int:
    """How many segments to cut each of `sequences` (batch * heads) of `chunks` chunks into, for `units` processors.

    It is one where the sequences alone occupy the device, since cutting costs a second pass over k, v and the gates.
    Otherwise there are about two programs for each unit, each of at least four chunks.
    """
    if 2 * sequences > units or sequences == 0:
        return 1
    return max(1, min(triton.cdiv(2 * units, sequences), chunks // 4))


@functools.cache
def _units(device: torch.device) -> int:
    """Multiprocessors (compute units) of the device; a large GPU's number where the device is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def padded(width: int) -> int:
    """The channels of a head that a kernel works on: a power of two, as blocks have to be."""
    return max(16, triton.next_power_of_2(width))
