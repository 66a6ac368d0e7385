"""Patches of images against PyTorch's own unfolding."""

import re

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metala_vision.kernels import available_backends, patches

pytestmark = pytest.mark.skipif("cpu" not in available_backends(), reason="the C kernels do not run here")


def unfolded(x: Tensor, height: int, width: int) -> Tensor:
    """By F.unfold, in float64 since it knows no bfloat16."""
    x = F.pad(x.double(), (0, -x.shape[3] % width, 0, -x.shape[2] % height))
    columns = F.unfold(x, (height, width), stride=(height, width))
    return columns.transpose(1, 2).unflatten(1, (x.shape[2] // height, x.shape[3] // width))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("size", [(16, 16), (4, 2), (3, 5), (1, 1), (40, 7)], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 32, 48), (1, 1, 17, 5), (3, 2, 1, 1), (0, 3, 8, 8)], ids=str)
def test_patches(shape, size, dtype):
    """Catches lines, channels or images that change places, and padding that is no zero or on the wrong side."""
    x = torch.randn(shape).to(dtype)
    garbage = torch.full((1 << 16,), float("nan"))  # what the memory of the result may hold
    del garbage
    expected = unfolded(x, *size).to(dtype)
    for image in (x, x.contiguous(memory_format=torch.channels_last), torch.cat([x] * 2, 2)[:, :, : shape[2]]):
        found = patches(image, *size)
        assert found.is_contiguous()
        assert torch.equal(found, expected)


def test_gradient():
    """Catches a copy that autograd does not see."""
    x = torch.randn(2, 3, 10, 9, requires_grad=True)
    weight = torch.randn(2, 3, 5, 24)
    (found,) = torch.autograd.grad((patches(x, 4, 2) * weight).sum(), x)
    (expected,) = torch.autograd.grad((unfolded(x, 4, 2) * weight).sum(), x)
    assert torch.equal(found, expected.float())


@pytest.mark.filterwarnings("ignore:.torch.jit")  # torch itself scripts functions when forward mode begins
def test_forward_mode():
    """Catches a tangent that is silently lost."""
    x, tangent = torch.randn(2, 3, 10, 9), torch.randn(2, 3, 10, 9)
    with torch.autograd.forward_ad.dual_level():
        out = patches(torch.autograd.forward_ad.make_dual(x, tangent), 4, 2)
        found = torch.autograd.forward_ad.unpack_dual(out)
        assert torch.equal(found.primal, patches(x, 4, 2))
        assert torch.equal(found.tangent, patches(tangent, 4, 2))


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((3, 8, 8), (4, 4), "x: got shape (3, 8, 8), expected [B, chans, H, W]"),
        ((1, 3, 8, 8), (0, 4), "height, width: got 0, 4, expected at least 1"),
    ],
)
def test_bad_input(shape, size, message):
    """Catches a division by zero in C."""
    with pytest.raises(ValueError, match=re.escape(message)):
        patches(torch.randn(shape), *size)
