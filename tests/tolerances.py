"""The one table of tolerances: RMS(error) / RMS(reference) at most. Nothing loosens them."""

import torch
from torch import Tensor

FLOAT64 = 1e-12  # chunked float64 against reference float64
FLOAT32 = 1e-5  # any backend in float32 against reference float64, the output and every gradient
HALF = 5e-3  # bfloat16 or float16 inputs against reference float64 on the same rounded inputs
HALF_MIXER = 1.5e-2  # a whole mixer by autocast, three products one after the other, against float64
BFLOAT16_GATE_GRADIENT = 2e-2  # the same, for the bfloat16 gradient of log_decay


def for_dtype(dtype: torch.dtype, name: str = "out") -> float:
    """Tolerance for inputs of `dtype`; `name` is "out" or the input whose gradient is compared."""
    if dtype == torch.bfloat16 and name == "log_decay":
        return BFLOAT16_GATE_GRADIENT
    return {torch.float64: FLOAT64, torch.float32: FLOAT32}.get(dtype, HALF)


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """RMS(actual - expected) / RMS(expected); infinite for NaN, and for anything but zeros where zeros are expected."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    if not (actual.isfinite().all() and expected.isfinite().all()):
        return float("inf")
    error, reference = (actual - expected).norm().item(), expected.norm().item()
    if reference == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / reference
