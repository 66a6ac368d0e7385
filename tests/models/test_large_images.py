"""Images of thousands of pixels a side: memory, time per token, and training that stays finite."""

import subprocess
import sys
import textwrap

import pytest
import timm
import torch
from torch.nn import functional as F

import metala_vision  # noqa: F401  (registers the models)

pytestmark = pytest.mark.slow

FORWARD = """
    import resource, statistics, sys, time
    import timm, torch
    import metala_vision
    torch.set_num_threads(2)
    model = timm.create_model("metala_vit_tiny").eval()
    seconds = {1024: [], 8192: []}
    with torch.inference_mode():
        for _ in range(3):
            for size, times in seconds.items():
                x = torch.randn(1, 3, size, size)
                model(x)
                start = time.perf_counter()
                assert model(x).isfinite().all()
                times.append((time.perf_counter() - start) / (size // 16) ** 2)
    ratio = statistics.median(seconds[8192]) / statistics.median(seconds[1024])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, ratio)
"""


@pytest.mark.timeout(600)
def test_8192_pixels_in_16_gigabytes():
    """Catches anything quadratic, a copy too many, and memory traffic that outgrows the caches with the image."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORWARD)], capture_output=True, text=True, check=True
    )
    gigabytes, per_token = map(float, result.stdout.split())
    print(f"peak {gigabytes:.2f} GB, time per token {per_token:.2f} times that at 1024 pixels")
    assert gigabytes < 16
    assert per_token <= 1.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_training_at_1024_pixels_stays_finite(dtype):
    """Catches an overflow that only thousands of tokens bring about."""
    model = timm.create_model("metala_vit_tiny", num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, target = torch.randn(2, 3, 1024, 1024), torch.tensor([3, 7])
    losses = []
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(model(x), target)
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
