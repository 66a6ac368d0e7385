"""The three conditions of the MetaLA paper: what is known of a mixer must come out of its measurement."""

import json
from pathlib import Path

import pytest
import torch
from tool_process import run_tool

from metala_vision.errors import InputError
from metala_vision.layers.mixers import MIXERS
from metala_vision.layers.mixers.registry import build_mixer
from metala_vision.profiling.attention.conditions import (
    Task,
    approximation,
    conditions,
    is_dynamic,
    render,
    softmax_maps,
)

FEW = Task(key_dim=4, side=2, maps=3, steps=600)


def test_maps():
    for causal in (False, True):
        maps = softmax_maps(Task(side=3), causal)
        assert maps.shape == (8, 9, 9)
        torch.testing.assert_close(maps.sum(-1), torch.ones(8, 9))
        assert torch.equal(maps.triu(1).any(), torch.tensor(not causal))
    assert softmax_maps(Task(sharpness=8.0), False).max() > 0.9 > softmax_maps(Task(sharpness=0.1), False).max()


def test_what_forgets_by_the_data():
    found = {name: is_dynamic(build_mixer(name, 16, 1)) for name in MIXERS}
    assert {name for name, dynamic in found.items() if dynamic} == {"metala", "gla", "ssd", "hgrn"}
    assert {name for name, dynamic in found.items() if dynamic is False} == {"retnet"}


@pytest.mark.parametrize("causal", [False, True])
def test_softmax_expresses_softmax(causal):
    """Catches a fit that cannot reach its target: queries and keys of the maps' own width are free."""
    assert approximation("softmax", FEW, causal) < 0.02


@pytest.mark.long
def test_as_many_key_channels_as_tokens_express_any_map():
    """MetaLA's claim, that no key is needed. The single key channel of HGRN does not reach a map of a sequence."""
    assert approximation("metala", FEW, causal=True) < 0.02
    assert approximation("hgrn", FEW, causal=True) > 0.1


@pytest.mark.long
def test_a_product_of_low_rank_is_fitted_as_well_as_can_be():
    """The map of normalized attention on a grid has the rank of its keys: Eckart and Young say what must be left."""
    task = FEW._replace(side=3)
    values = torch.linalg.svdvals(softmax_maps(task, False)).square()
    least = (values[:, task.key_dim :].sum(1) / values.sum(1)).sqrt().mean().item()
    assert 0.999 * least <= approximation("normalized", task, causal=False) <= 1.03 * least


def test_rows():
    told = []
    rows = conditions(["metala", "inline"], FEW._replace(steps=2), told.append)
    assert [row["mixer"] for row in rows] == ["metala", "inline"]
    assert [" s left" in line for line in told] == [True, True]
    assert told[-1].endswith("; 0 s left")
    assert rows[1]["causal"] is None
    assert 4.0 < rows[0]["in_dim_squared"] < 4.02
    assert rows[0]["key_dim"] == rows[1]["key_dim"] == 4
    assert "| inline | has none | 4 | none |" in render(rows)


def test_what_does_not_fit():
    with pytest.raises(InputError, match="got mamba, expected some of"):
        conditions(["mamba"])
    for odd in (1, 5):
        with pytest.raises(InputError, match=f"key_dim is {odd}, expected an even number"):
            conditions(["retnet"], Task(key_dim=odd))
    with pytest.raises(InputError, match="steps is 0, expected more than 0"):
        conditions(["gla"], Task(steps=0))


def test_the_tool_on_a_mixer_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_mixers.py").write_text(
        "from metala_vision.layers import register_mixer\n"
        "from metala_vision.layers.mixers import GLA\n"
        "@register_mixer('mine')\n"
        "class Mine(GLA):\n"
        "    pass\n"
    )
    few = ("--side", "2", "--steps", "2", "--key-dim", "4")
    done = run_tool("mixer_conditions.py", "mine", "--import", "my_mixers", *few, "--out", "rows.json")
    assert done.returncode == 0, done.stderr
    assert "| mine | yes | 4 |" in done.stdout
    assert json.loads(Path("rows.json").read_text())["rows"][0]["mixer"] == "mine"
    for arguments, message in (
        (["--import", "no_such_module"], "--import: no_such_module: ModuleNotFoundError"),
        (["gla", "--out", "rows.json/more.json"], "--out: the folder of rows.json/more.json cannot be made: "),
    ):
        done = run_tool("mixer_conditions.py", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
