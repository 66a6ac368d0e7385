"""The operator and the fused mixer in nanoseconds for a head and token, beside softmax attention and its rivals."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from metala_vision.kernels import gated_linear_attention, library, mixer
from metala_vision.profiling.speed.attention import SDPA, attention
from metala_vision.profiling.speed.isolated import is_out_of_memory, one_line

from .clock import graphed, milliseconds
from .parts import Cell, Job

SHAPES = [(256, 14, 14), (64, 32, 32), (8, 64, 64), (1, 128, 128), (1, 256, 256)]  # batch, rows, columns of tokens
HEADS, KEY, VALUE = 3, 32, 64
SCAN = ("row",)  # one order, as a block of the default "cycle" has
SOFTMAX = {f"softmax ({name})": name for name in SDPA if name != "default"}
PASSES = ("forward", "forward and backward")


def cells(job: Job) -> list[Cell]:
    """A cell for each shape, dtype and pass; half precision first."""
    shapes = [(1, 2, 3)] if job.rehearse else SHAPES
    return [
        Cell(
            f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')} {passes}",
            partial(measure, job, shape, dtype, passes),
        )
        for dtype in ((torch.bfloat16,) if job.rehearse else (torch.bfloat16, torch.float32))
        for shape in shapes
        for passes in PASSES
    ]


def floor_bytes(dtype: torch.dtype, passes: str) -> dict[str, int]:
    """Bytes of a head and token that must cross the bus: each input once, each result once, in either pass."""
    size = dtype.itemsize
    operator, fused = 2 * KEY + VALUE, 2 * KEY + 2 * VALUE  # inputs: q, g and v; and z
    forward = {"operator": size * (operator + VALUE), "fused mixer": size * (fused + VALUE)}
    if passes == "forward":
        return forward
    # Backward: the inputs and the gradient of the result are read, the gradients of the inputs are written
    backward = {"operator": size * (2 * operator + VALUE), "fused mixer": size * (2 * fused + VALUE)}
    return {name: forward[name] + backward[name] for name in forward}


def measure(job: Job, shape: tuple[int, int, int], dtype: torch.dtype, passes: str) -> dict:
    """The row of a cell: by candidate `ns_per_head_token`, `milliseconds`, `spread`, and for ours `of_floor`.

    Times are of CUDA graphs, which are the device's own; `eager_milliseconds` has the host's launches in it.
    """
    batch, rows, cols = shape
    runs, missing = {}, {}
    with triton_kernels(job):
        for name, call in candidates(job, shape, dtype).items():
            once = partial(_pass, call, passes)
            try:
                once()
                runs[name] = graphed(once, job.device)
                if name in ("operator", "fused mixer"):
                    runs[f"{name}, eager"] = once
            except Exception as error:  # of one candidate: a softmax kernel that this card or dtype does not have
                missing[name] = "out of memory" if is_out_of_memory(error) else one_line(error)
        eager = [name for name in runs if name.endswith(", eager")]
        spreads = milliseconds(runs, job.device, rounds=2 if job.rehearse else 25, from_idle=eager)
    tokens, floors = batch * rows * cols * HEADS, floor_bytes(dtype, passes)
    found: dict[str, dict[str, Any]] = {}
    for name in (name for name in spreads if not name.endswith(", eager")):
        median = spreads[name].median
        found[name] = {"ns_per_head_token": 1e6 * median / tokens, "milliseconds": median}
        found[name]["spread"] = spreads[name].relative_range
        if name in floors:
            floor = tokens * floors[name] / (1e6 * job.ceilings["copy_gb_s"]) if "copy_gb_s" in job.ceilings else None
            found[name]["of_floor"] = floor and floor / median
            found[name]["eager_milliseconds"] = spreads[f"{name}, eager"].median
    return {"candidates": found, "missing": missing}


@contextlib.contextmanager
def triton_kernels(job: Job) -> Iterator[None]:
    """A context in which the operators run, on a CPU, in Triton's interpreter instead of in C."""
    if job.device != "cpu":
        yield
        return
    from metala_vision.kernels import gpu

    former, library._kernels = library._kernels, lambda x: gpu
    try:
        yield
    finally:
        library._kernels = former


Call = tuple[
    Callable[..., torch.Tensor], list[torch.Tensor], torch.Tensor
]  # a function, its leaves, grad of its result


def candidates(job: Job, shape: tuple[int, int, int], dtype: torch.dtype) -> dict[str, Call]:
    """What is compared, all on as many heads and tokens."""
    batch, rows, cols = shape
    tokens, dim = rows * cols, HEADS * VALUE

    def leaf(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, device=job.device).to(dtype)

    q, v = leaf(batch, tokens, HEADS, KEY), leaf(batch, tokens, HEADS, VALUE)
    gate = (F.logsigmoid(torch.randn(q.shape, device=job.device)) / 16).to(dtype)
    projected, bias, weight = leaf(batch, tokens, 3 * dim), leaf(dim).float(), leaf(dim // 2).float()
    grid = (rows, cols)

    def fused(projected: torch.Tensor, bias: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return mixer(projected, bias, weight, HEADS, rows, cols, ",".join(SCAN))

    found: dict[str, Call] = {
        "operator": (partial(gated_linear_attention, grid=grid, scan=SCAN), [q, gate, v], torch.randn_like(v)),
        "fused mixer": (fused, [projected, bias, weight], leaf(batch, tokens, dim)),
    }
    wide = [leaf(batch, HEADS, tokens, VALUE) for _ in range(3)]
    names = ("softmax (flash)", "softmax (math)") if job.rehearse else SOFTMAX
    found |= {name: (partial(_attend, SOFTMAX[name]), wide, torch.randn_like(wide[0])) for name in names}
    if job.device == "cuda" and importlib.util.find_spec("fla"):

        def one_order(q, gate, v):
            from fla.ops.gla import chunk_gla  # here, so that one that cannot be imported is missing, and no more

            return chunk_gla(q, -torch.expm1(gate), v, gate)[0]

        found["fla chunk_gla"] = (one_order, [q, gate, v], torch.randn_like(v))
    for _, leaves, _ in found.values():
        for x in leaves:
            x.requires_grad_()
    return found


def _attend(sdpa: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    with attention(sdpa):
        return F.scaled_dot_product_attention(q, k, v)


def _pass(call: Call, passes: str) -> object:
    function, leaves, grad = call
    if passes == "forward":
        with torch.no_grad():
            return function(*leaves)
    return torch.autograd.grad(function(*leaves), leaves, grad)
