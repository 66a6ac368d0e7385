"""The matrix products of inference: both libraries against float64."""

import pytest
import torch
from tolerances import FLOAT32, HALF, relative_rms

from metala_vision.kernels.linear import linear, takes_onednn


@pytest.fixture(params=["onednn", "torch"])
def library(request, monkeypatch):
    """The library that `linear` calls."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", request.param == "onednn")
    if takes_onednn(torch.float32) != (request.param == "onednn"):
        pytest.skip("torch has no oneDNN here, or it was not measured on this kind of processor")
    return request.param


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True], ids=["unbiased", "bias"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize(
    "shape", [(37, 12, 20), (1, 1, 1), (3, 5, 7), (0, 4, 3), (200, 192, 576)], ids=lambda s: "x".join(map(str, s))
)
@pytest.mark.parametrize("layout", ["contiguous", "strided", "transposed"])
def test_linear_equals_the_product(layout, shape, residual, bias, dtype):
    """Catches a weight that is not transposed, a sum left out or overwritten, and strides taken for dense ones."""
    tokens, channels, out_channels = shape
    x, weight = torch.randn(tokens, channels).to(dtype), torch.randn(out_channels, channels).to(dtype)
    added = torch.randn(tokens, out_channels).to(dtype) if residual else None
    if layout == "strided":
        x, weight = (torch.cat([y, y], 1)[:, : y.shape[1]] for y in (x, weight))
    elif layout == "transposed":
        x, weight = (y.t().contiguous().t() for y in (x, weight))
    shift = torch.randn(out_channels).to(dtype) if bias else None
    expected = x.double() @ weight.double().t() + (added.double() if residual else 0.0)
    expected = expected + (shift.double() if bias else 0.0)
    before = added.clone() if residual else None
    out = linear(x, weight, added, shift)
    assert (out.shape, out.dtype) == ((tokens, out_channels), dtype)
    assert out.is_contiguous()
    assert not tokens or relative_rms(out, expected) <= (FLOAT32 if dtype == torch.float32 else HALF)
    assert added is None or torch.equal(added, before)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("batch", [(2, 3), (1, 1), (0, 3), ()], ids=str)
def test_linear_of_batches(batch):
    """Catches leading axes that are lost."""
    x, weight, residual = torch.randn(*batch, 5), torch.randn(7, 5), torch.randn(*batch, 7)
    for added in ((), (residual,)):
        out = linear(x, weight, *added)
        assert out.shape == (*batch, 7)
        assert not out.numel() or relative_rms(out, x.double() @ weight.double().t() + sum(added)) <= FLOAT32
