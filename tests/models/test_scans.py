"""Scan orders by name and as a tuple: from the call, from a file and through what makes another model of a model."""

import json

import pytest
import timm
import torch
from timm.models import save_for_hf
from tolerances import FLOAT32, relative_rms
from torchscript import script
from vit_model import nano

ORDERS = ("row", "column")


@pytest.mark.parametrize("scan", [ORDERS, list(ORDERS), json.loads('["row", "column"]'), ("column_reverse",)], ids=str)
def test_orders_of_every_block(scan):
    """Catches "unhashable type" for a list, which config files and JSON make of a tuple, and orders one by one."""
    model = nano(depth=3, scan=scan)
    assert [block.mixer.scan for block in model.blocks] == [tuple(scan)] * 3
    assert f"scan={tuple(scan)}" in repr(model)


def test_tuple_equals_the_name_of_the_same_orders():
    """Catches a tuple taken for another scan; ("row",) is one order, and "row" both ways."""
    by_name, x = nano(scan="row"), torch.randn(1, 3, 48, 80)
    for scan, equal in ((("row", "row_reverse"), True), (("row",), False)):
        model = nano(scan=scan)
        model.load_state_dict(by_name.state_dict())
        assert torch.equal(model(x), by_name(x)) == equal


def test_tuple_through_files_and_tracers(tmp_path):
    """Catches a configuration that forgets the orders, and a tuple of strings that a compiler does not take."""
    model, x = nano(scan=ORDERS), torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        expected = model(x)
        save_for_hf(model, tmp_path, model_args=dict(scan=ORDERS, depth=2))
        loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert [block.mixer.scan for block in loaded.blocks] == [ORDERS] * 2
        for other in (loaded, script(model), torch.fx.symbolic_trace(model)):
            assert relative_rms(other(x), expected) <= FLOAT32


@pytest.mark.parametrize(
    "scan",
    ["column", "row,column", (), ("row", "row"), ("row", "diagonal"), [["row"], ["column"]], {"row"}, 3],
    ids=str,
)
def test_what_is_no_scan(scan):
    """Catches an error that does not say what to write, and one of Python's about what it got."""
    message = (
        r"scan: got .*, expected one of \('cycle', .*\), or the orders of every block, .* \('row', 'row_reverse', "
    )
    with pytest.raises(ValueError, match=message):
        timm.create_model("metala_vit_nano", scan=scan)
