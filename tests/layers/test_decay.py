"""How far scans remember on other grids than that of the training."""

import pytest
import torch
from tolerances import FLOAT32, relative_rms
from torch.nn import functional as F

from metala_vision.kernels import mixer
from metala_vision.layers import MetaLA
from metala_vision.layers.decay import decay_scale


def test_a_scan_remembers_the_same_share_of_a_picture():
    assert decay_scale((20, 40), (8, 10)) == 0.1
    assert decay_scale((8, 10), (8, 10)) == 1.0
    assert decay_scale((10, 8), (8, 10)) == 1.0
    assert decay_scale((4, 5), (8, 10)) == 4.0, "of a smaller picture too"
    assert decay_scale((20, 40), (0, 0)) == 1.0, "no grid of a training is known"


@pytest.mark.parametrize("scan", [("row",), ("column_reverse", "column"), ("row_reverse", "column")])
def test_the_layer_scales_by_its_grid(scan):
    """Catches a layer that scales without knowing its grid, or by something else."""
    layer = MetaLA(32, 2, scan).double()
    torch.nn.init.normal_(layer.in_proj.weight)
    x, grid = torch.randn(2, 5 * 9, 32, dtype=torch.float64), (5, 9)
    for nominal, scale in (((0, 0), 1.0), ((5, 9), 1.0), ((4, 3), 12 / 45), ((10, 9), 2.0)):
        layer.nominal_grid = nominal
        projected = F.linear(layer.conv(x, grid), layer.in_proj.weight, layer.bias_in())
        mixed = mixer(projected, layer.gate_bias, layer.aug_weight, 2, *grid, ",".join(scan), decay_scale=scale)
        expected = layer.out_proj(mixed)
        assert torch.equal(layer(x, grid), expected)
        inside = layer.float()(x.float(), grid)
        assert relative_rms(inside, expected) <= 10 * FLOAT32
        layer.double()
