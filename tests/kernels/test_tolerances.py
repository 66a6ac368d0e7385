"""The yardstick itself: a comparison that lets NaN or a non-zero gradient through would pass everything."""

import pytest
import torch
from tolerances import relative_rms


def test_relative_rms_measures():
    expected = torch.tensor([3.0, 4.0])
    assert relative_rms(expected, expected) == 0.0
    assert relative_rms(expected + torch.tensor([0.3, 0.4]), expected) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_relative_rms_fails_what_is_not_finite(bad):
    finite, broken = torch.ones(2), torch.tensor([1.0, bad])
    assert relative_rms(broken, finite) == float("inf")
    assert relative_rms(finite, broken) == float("inf")
    assert relative_rms(broken, broken) == float("inf")


def test_relative_rms_is_strict_for_a_zero_reference():
    zeros = torch.zeros(3)
    assert relative_rms(zeros, zeros) == 0.0
    assert relative_rms(torch.tensor([0.0, 0.0, 1e-30]), zeros) == float("inf")


def test_relative_rms_does_not_broadcast():
    with pytest.raises(AssertionError, match="shape"):
        relative_rms(torch.zeros(3), torch.zeros(1, 3))
