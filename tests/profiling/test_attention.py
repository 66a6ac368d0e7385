"""Softmax attention by the kernel that was asked for, and the name of the one that ran."""

import pytest
import torch

from metala_vision.profiling import Request, measure
from metala_vision.profiling.speed.attention import SDPA, attention, attention_that_ran, calls_softmax
from metala_vision.profiling.speed.steps import Cell, create, make_step

NANO, TINY = "metala_vit_nano", "vit_tiny_patch16_224"


def once(name: str):
    model = create(name, 64).eval()
    return lambda: model(torch.zeros(1, 3, 64, 64))


def test_softmax_models_are_told_by_what_they_call():
    """XCiT's only softmax attention of PyTorch's has a single query, ours none."""
    assert calls_softmax(once(TINY))
    assert not calls_softmax(once(NANO))
    assert not calls_softmax(once("xcit_nano_12_p16_224"))
    q = torch.zeros(1, 2, 8, 16)
    assert calls_softmax(lambda: torch.nn.functional.scaled_dot_product_attention(query=q, key=q, value=q))


@pytest.mark.parametrize("no_gradients", [torch.inference_mode, torch.enable_grad], ids=["infer", "train"])
def test_what_ran_is_seen(no_gradients):
    """Catches a name that is taken from what was asked for: PyTorch's choice on a CPU is its flash kernel."""
    model, cell = create(TINY, 64).eval(), Cell(64, 1, "float32", "infer")
    found = {sdpa: attention_that_ran(make_step(model, cell, no_gradients, sdpa)) for sdpa in ("default", "math")}
    assert found == {"default": "flash", "math": "math"}
    assert attention_that_ran(make_step(model, cell, no_gradients, "flash")) == "flash"
    assert attention_that_ran(make_step(create(NANO, 64).eval(), cell, no_gradients)) is None


@pytest.mark.parametrize("sdpa", ["cudnn", "efficient"])
def test_a_kernel_that_there_is_not(sdpa):
    """Catches a forced kernel that silently becomes another one: these two are of GPUs."""
    q = torch.randn(1, 2, 8, 16)
    with pytest.raises(RuntimeError), attention(sdpa):
        torch.nn.functional.scaled_dot_product_attention(q, q, q)


def test_a_sweep_names_what_ran(tmp_path):
    """Catches a row without its kernel, a crash where there is none of the kernel asked for, a model measured twice."""
    sdpa = ["default", "math", "cudnn"]
    request = Request([NANO, TINY], [64], sdpa=sdpa, batch=1, rounds=1, threads=1, device="cpu")
    rows = {(row["model"], row["sdpa"]): row for row in measure(request, tmp_path)["rows"]}
    assert set(rows) == {(NANO, "default"), *((TINY, name) for name in sdpa)}
    assert {key: row["attention"] for key, row in rows.items() if row["status"] == "ok"} == {
        (NANO, "default"): None,
        (TINY, "default"): "flash",
        (TINY, "math"): "math",
    }
    assert rows[TINY, "cudnn"]["status"] == "failed"
    assert rows[TINY, "cudnn"]["reason"]
    assert set(SDPA) == {"default", "cudnn", "flash", "efficient", "math"}
