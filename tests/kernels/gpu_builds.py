"""Compiles what kernels/gpu.py would launch, for GPUs that need not be there: recorded launches, and what they cost."""

import importlib.util
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes of shared memory (LDS) that one program may have.
SHARED_LIMITS = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")  # of Triton, not of a kernel
KERNELS = ("segment_states", "combine", "outputs", "query_gradients", "key_value_gradients", "gated_norm_gradient")
_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


class Launch(NamedTuple):
    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]


class Build(NamedTuple):
    registers: int
    spilled: int  # bytes of stack a thread needs beside its registers
    shared: int


def record(gpu, call) -> list[Launch]:
    """The launches of `call()`, none of which runs: `gpu` is the module kernels/gpu.py."""
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, name: str, kernel):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            def launch(*args, **kwargs):
                options = {key: kwargs.pop(key) for key in OPTIONS if key in kwargs}
                arguments = dict(zip(self.kernel.arg_names, args)) | kwargs
                assert set(arguments) == set(self.kernel.arg_names), f"{self.name}: arguments and parameters differ"
                launches.append(Launch(self.name, self.kernel, grid, arguments, options))

            return launch

    kernels = {name: getattr(gpu, name) for name in KERNELS}
    try:
        for name, kernel in kernels.items():
            setattr(gpu, name, Recorder(name, kernel))
        call()
    finally:
        for name, kernel in kernels.items():
            setattr(gpu, name, kernel)
    return launches


def source(launch: Launch) -> ASTSource:
    """The specialisation that Triton would compile at this launch."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (value == 1 if type(value) is int and not parameter.do_not_specialize else False):
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = _TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def build(launch: Launch, target: str) -> Build:
    compiled = triton.compile(source(launch), target=TARGETS[target], options=dict(launch.options))
    if TARGETS[target].backend == "cuda":
        registers, stack = _cuda_usage(compiled.asm["cubin"])
    else:
        field = {
            key: int(value) for key, value in re.findall(r"^\s*\.(\w+):\s+(\d+)$", compiled.asm["amdgcn"], re.MULTILINE)
        }
        registers = field["vgpr_count"]
        # Scalar registers spill to lanes of vector registers, not to memory: private_segment_fixed_size tells.
        stack = field["private_segment_fixed_size"] + 4 * field["vgpr_spill_count"]
    return Build(registers, stack, compiled.metadata.shared)


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    tool = Path(importlib.util.find_spec("triton").origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    (registers,), (stack,) = re.findall(r"REG:(\d+)", text), re.findall(r"STACK:(\d+)", text)
    return int(registers), int(stack)


def bytes_per_token(launches: list[Launch], tokens: int) -> list[float]:
    """Bytes that each launch moves for a token of one head, if every tensor it uses crosses the bus once each time.

    From what the kernels read and write, not measured: a cache makes it less.
    """
    return [_bytes(launch.name, launch.arguments) / tokens for launch in launches]


def _bytes(name: str, a: dict[str, Any]) -> float:
    if name == "gated_norm_gradient":
        width = {x: a["V"] * a[x].element_size() for x in ("grad_y", "o", "z", "grad_o", "grad_z")}
        return a["tokens"] * sum(width.values())
    state = 4 * a["KP"] * a["VP"]
    if name == "combine":
        return 2 * a["segments"] * state * a["ORDERS"] * (1 + a["ADJOINT"])
    tokens = a["tokens"]
    key, value = a["K"] * tokens, a["V"] * tokens
    inputs = key * a["gate"].element_size() + value * a["v"].element_size()
    inputs += 0 if a["DERIVED"] else key * a["k"].element_size()
    queries = key * a["q"].element_size()
    if name == "segment_states":
        adjoint = queries + value * a["grad_out"].element_size()
        return a["ORDERS"] * (inputs + a["ADJOINT"] * adjoint + (1 + a["ADJOINT"]) * a["segments"] * state)
    entering = a["SEGMENTED"] * a["segments"] * state
    if name == "outputs":
        sums = 2 * a["ORDERS"] - a["FIRST"] - (not a["KEEP"])  # reads and writes of the float32 sum
        final = value * a["out"].element_size() * a["LAST"]
        gate = value * a["z"].element_size() * (a["MIXER"] and a["LAST"])
        return a["ORDERS"] * (queries + inputs + entering) + 4 * value * sums + final + gate
    first, last = a["FIRST"], a["LAST"]
    chunks = -(-tokens // a["BT"]) * state
    shared = queries + inputs + value * a["grad_out"].element_size() + entering

    def summed(count: int, name: str) -> float:
        return count * (4 * (1 - first) + (a[name].element_size() if last else 4))

    if name == "query_gradients":
        return shared + chunks + summed(key, "dq") + 4 * key * (2 - first)
    gradients = summed(value, "dv") * a["VALUES"]
    if a["KEYS"]:
        gradients += chunks + 4 * key + key * (a["dgate"].element_size() if last else 4)
        gradients += 0 if a["DERIVED"] else summed(key, "dk")
    return shared + gradients
