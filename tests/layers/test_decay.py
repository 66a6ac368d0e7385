"""How far scans remember on other grids than that of the training."""

import pytest
import torch
from tolerances import FLOAT32, relative_rms

from metala_vision.kernels import mixer
from metala_vision.layers import MetaLA
from metala_vision.layers.decay import axis_of, decay_scale


@pytest.mark.parametrize(
    ("axis", "expected"), [("row", 10 / 40), ("column", 8 / 20), ("both", (10 * 8 / 40 / 20) ** 0.5)]
)
def test_a_scan_remembers_as_many_rows_or_columns(axis, expected):
    assert decay_scale((20, 40), (8, 10), axis) == pytest.approx(expected, rel=1e-12)
    assert decay_scale((8, 10), (8, 10), axis) == 1.0
    assert decay_scale((20, 40), (0, 0), axis) == 1.0, "no grid of a training is known"


@pytest.mark.parametrize(
    ("scan", "axis"),
    [(("row",), "row"), (("column_reverse", "column"), "column"), (("row_reverse", "column"), "both")],
)
def test_the_layer_scales_by_the_axis_of_its_scan(scan, axis):
    """Catches rows and columns that change places, and a layer that scales without knowing its grid."""
    assert axis_of(scan) == axis
    layer = MetaLA(32, 2, scan).double()
    torch.nn.init.normal_(layer.in_proj.weight)
    x, grid = torch.randn(2, 5 * 9, 32, dtype=torch.float64), (5, 9)
    for nominal, scale in (((0, 0), 1.0), ((5, 9), 1.0), ((4, 3), decay_scale(grid, (4, 3), axis))):
        layer.nominal_grid = nominal
        projected = layer.in_proj(layer.conv(x, grid))
        mixed = mixer(projected, layer.gate_bias, layer.aug_weight, 2, *grid, ",".join(scan), decay_scale=scale)
        expected = layer.out_proj(mixed)
        assert torch.equal(layer(x, grid), expected)
        inside = layer.float()(x.float(), grid)
        assert relative_rms(inside, expected) <= 10 * FLOAT32
        layer.double()
