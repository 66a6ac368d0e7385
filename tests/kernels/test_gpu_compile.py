"""Every kernel as kernels/gpu.py launches it, compiled for GPUs that need not be there: registers, shared memory.

`pytest -s tests/kernels/test_gpu_compile.py` prints the table.
"""

import json
import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: it comes with torch on Linux")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 is set: kernels are interpreted, not compiled", allow_module_level=True)

from gpu_builds import SHARED_LIMITS, TARGETS, build, bytes_per_token, record  # noqa: E402

from metala_vision.kernels import gpu, gpu_plan  # noqa: E402

GRID = (16, 16)
HEADS = 3
BOTH = ("row", "row_reverse")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def operator(key: int, value: int, dtype: torch.dtype, scan: tuple[str, ...], with_k: bool = False):
    """Forward and backward of the operator; the launches are recorded and do not run."""
    q = torch.zeros(1, 256, HEADS, key, dtype=dtype)
    v = torch.zeros(1, 256, HEADS, value, dtype=dtype)
    k = q if with_k else None

    def call():
        gpu.forward(q, q, v, k, GRID, scan, 0.2)
        gpu.backward(v, q, q, v, k, GRID, scan, 0.2)

    return call


def mixer(key: int, value: int, dtype: torch.dtype, scan: tuple[str, ...]):
    assert value == 2 * key
    channels = HEADS * value
    projected = torch.zeros(1, 256, 3 * channels, dtype=dtype)
    bias, weight = torch.zeros(channels), torch.zeros(channels // 2)

    def call():
        y, o = gpu.mixer_forward(projected, bias, weight, HEADS, GRID, scan)
        gpu.mixer_backward(y, projected, bias, weight, o, HEADS, GRID, scan)

    return call


def cells() -> list:
    """Problems by target. The default run has every target, both dtypes and widths, and the rest is slow."""
    default = {
        (mixer, 32, 64, "bf16", BOTH, 2): list(TARGETS),
        (mixer, 32, 64, "fp32", BOTH, 2): ["sm_90"],
        (operator, 32, 64, "bf16", BOTH, 2): ["sm_90"],
        (operator, 64, 64, "fp32", BOTH, 2): ["sm_80"],
    }
    problems = list(default) + [
        (call, key, value, dtype, scan, segments)
        for call, key, value in [(mixer, 32, 64), (operator, 32, 64), (operator, 64, 64), (operator, 16, 32)]
        for dtype in DTYPES
        for scan in [("row",), ("row", "row_reverse", "column", "column_reverse")]
        for segments in (1, 2)
    ]
    return [
        pytest.param(
            *problem,
            target,
            id=f"{problem[0].__name__}-K{problem[1]}xV{problem[2]}-{problem[3]}-{len(problem[4])}-{problem[5]}-{target}",
            marks=[] if target in default.get(problem, []) else pytest.mark.slow,
        )
        for problem in problems
        for target in TARGETS
    ]


@pytest.mark.long
@pytest.mark.parametrize(("call", "key", "value", "dtype", "scan", "segments", "target"), cells())
def test_compiles_without_spills(call, key, value, dtype, scan, segments, target, monkeypatch, record_property):
    """Catches a configuration that a GPU refuses, or that spills registers to memory and crawls."""
    monkeypatch.setattr(gpu_plan, "choose_segments", lambda *sizes: segments)
    monkeypatch.setattr(gpu_plan, "AMD", target.startswith("gfx"))
    launches = record(gpu, call(key, value, DTYPES[dtype], scan))
    assert len(launches) >= 3 + 2 * (segments > 1)
    lines, failures, seen, kernels = [], [], set(), []
    for launch, moved in zip(launches, bytes_per_token(launches, 256)):
        flags = ("COLUMN", "REVERSE", "FIRST", "LAST", "KEYS", "VALUES", "ADJOINT")
        label = " ".join([launch.name, *(flag.lower() for flag in flags if launch.arguments.get(flag))])
        if label in seen:
            continue
        seen.add(label)
        result = build(launch, target)
        kernels.append({"kernel": label, **result._asdict()})
        lines.append(f"{label:52}{result.registers:5}{result.spilled:7}{result.shared:8}{moved:9.0f}")
        if result.spilled or result.shared > SHARED_LIMITS[target]:
            failures.append(lines[-1])
    print(f"\n{target}: {call.__name__} K={key} V={value} {dtype} {'+'.join(scan)}, segments: {segments}")
    print(f"{'kernel':52}{'regs':>5}{'spill':>7}{'shared':>8}{'B/token':>9}", *lines, sep="\n")
    case = dict(operator=call.__name__, K=key, V=value, dtype=dtype, scan=scan, segments=segments, target=target)
    record_property("kernels", json.dumps(case | {"kernels": kernels}))  # tools/compat.py collects them
    assert not failures, "spilled bytes, or too much shared memory:\n" + "\n".join(failures)
