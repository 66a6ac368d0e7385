"""The chunkwise form beyond its numbers: the tree of states, second derivatives, cost, and memory it does not own."""

import importlib
import subprocess
import sys
import textwrap
from collections import Counter

import pytest
import torch
from gla_inputs import ALL_ORDERS, cast, make, run
from tolerances import FLOAT64, relative_rms
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from metala_vision.kernels import available_backends, gated_linear_attention

chunked = importlib.import_module("metala_vision.kernels.chunked")


@pytest.fixture(params=[(2, 2), (4, 3), (16, 2)], ids=lambda p: f"chunk{p[0]}-group{p[1]}")
def _small_tree(request, monkeypatch) -> None:
    """Chunks and groups so small that a short sequence climbs several levels of the tree."""
    monkeypatch.setattr(chunked, "CHUNK", request.param[0])
    monkeypatch.setattr(chunked, "GROUP", request.param[1])


@pytest.mark.usefixtures("_small_tree")
@pytest.mark.parametrize("gate", ["tau1", "tau16", "mixed"])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 9, 17, 35, 70, 131])
def test_every_level_of_the_tree_equals_reference(tokens, gate):
    """Catches a wrong padding or an exclusive sum taken for an inclusive one above the first level."""
    inputs = make(tokens, key=3, value=4, gate=gate, with_k=True)
    grad_out = torch.randn_like(inputs["v"])
    kwargs = dict(scan=ALL_ORDERS, grid=(1, tokens))
    out, gradients = run(inputs, grad_out, torch.float64, backend="reference", **kwargs)
    actual = run(inputs, grad_out, torch.float64, backend="chunked", **kwargs)
    assert relative_rms(actual[0], out) <= FLOAT64
    assert all(relative_rms(actual[1][name], gradients[name]) <= FLOAT64 for name in inputs)


def leaves_for_gradcheck(tokens: int, with_k: bool, gate: str = "tau1") -> list[torch.Tensor]:
    inputs = cast(make(tokens, key=2, value=2, gate=gate, with_k=with_k, batch=1, heads=1), torch.float64)
    return [x.requires_grad_() for x in inputs.values()]


def operator(grid, scan):
    def apply(q, log_decay, v, k=None):
        return gated_linear_attention(q, log_decay, v, k=k, grid=grid, scan=scan, backend="chunked")

    return apply


@pytest.mark.parametrize("with_k", [False, True], ids=["derived", "k"])
@pytest.mark.parametrize("scan", [("row",), ("column_reverse",), ALL_ORDERS], ids="+".join)
def test_gradcheck(scan, with_k):
    """Catches a gradient that is wrong in the reference too, across three chunks with padding."""
    assert torch.autograd.gradcheck(operator((5, 7), scan), leaves_for_gradcheck(35, with_k))


@pytest.mark.parametrize("with_k", [False, True], ids=["derived", "k"])
def test_gradgradcheck(with_k):
    """Catches a backward that cannot be differentiated again (gradient penalties, Hessian products)."""
    leaves = leaves_for_gradcheck(35, with_k)
    assert torch.autograd.gradgradcheck(operator((5, 7), ("row", "column_reverse")), leaves, fast_mode=True)


@pytest.mark.usefixtures("_small_tree")
def test_gradcheck_and_gradgradcheck_through_the_tree():
    """Catches a derivative that is cut, or NaN behind a mask, where groups of chunks combine."""
    leaves = leaves_for_gradcheck(19, with_k=True, gate="tau16")
    apply = operator((1, 19), ("row", "row_reverse"))
    assert torch.autograd.gradcheck(apply, leaves)
    assert torch.autograd.gradgradcheck(apply, leaves, fast_mode=True)


def test_gradcheck_on_two_full_size_levels():
    """Catches a wrong derivative with the sizes that ship: more than 256 tokens need a second level."""
    assert torch.autograd.gradcheck(operator((1, 273), ("row",)), leaves_for_gradcheck(273, False), fast_mode=True)


@pytest.mark.parametrize("backend", [name for name in available_backends() if name != "reference"])
def test_nan_filled_workspaces(backend, monkeypatch):
    """Catches an output or gradient that reads memory nobody wrote: `empty` is full of NaN in Python and in ATen."""

    def poisoned(make_empty):
        def empty(*args, **kwargs):
            x = make_empty(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return empty

    inputs = make(65 * 64, batch=1, with_k=True)
    grad_out = torch.randn_like(inputs["v"])
    kwargs = dict(grid=(65, 64), scan=ALL_ORDERS, backend=backend)
    clean, clean_gradients = run(inputs, grad_out, **kwargs)
    for owner, name in [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ]:
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
    assert torch.empty(2).isnan().all()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        out, gradients = run(inputs, grad_out, **kwargs)
    finally:
        torch.use_deterministic_algorithms(False)
    assert out.isfinite().all()
    assert torch.equal(out, clean)
    assert all(torch.equal(gradients[name], clean_gradients[name]) for name in inputs)


KEY, VALUE = 8, 16


class Tally(TorchDispatchMode):
    """Operations issued, the largest tensor any of them made, and the elements of all of them."""

    def __init__(self):
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.largest = 0
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations[str(func)] += 1
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor) and not func.is_view:
                self.largest = max(self.largest, x.numel())
                self.elements += x.numel()
        return result


def cost(rows: int, cols: int) -> dict[str, int]:
    """Counts of one forward and backward pass; on the meta device nothing is computed."""
    saved = 0

    def pack(x):
        nonlocal saved
        saved += x.numel()
        return x

    inputs = make(rows * cols, KEY, VALUE, with_k=True, batch=1, heads=1)
    leaves = [inputs[name].to("meta").requires_grad_() for name in ("q", "log_decay", "v", "k")]
    with Tally() as tally:
        with saved_tensors_hooks(pack, lambda x: x):  # the function itself: a registered operator would count as one
            out = chunked.chunked(*leaves, (rows, cols), ALL_ORDERS, 1.0)
        torch.autograd.grad(out, leaves, torch.empty_like(out))
    return {
        "operations": tally.operations.total(),
        "largest": tally.largest,
        "elements": tally.elements,
        "saved": saved,
    }


def test_cost_is_linear_in_the_number_of_tokens():
    """Catches a loop over chunks (operations grow with N) and a quadratic buffer (elements grow faster than N)."""
    small, large = cost(64, 64), cost(128, 128)
    assert small["operations"] <= large["operations"] <= 1.4 * small["operations"]
    for name in ("largest", "elements", "saved"):
        assert large[name] / small[name] == pytest.approx(4, rel=0.05), name
    assert large["largest"] <= 128 * 128 * KEY * VALUE / 4  # no state per token, let alone N x N


@pytest.mark.long
def test_peak_memory_of_a_large_image():
    """Catches an N x N map (3.2 GB) and a kept state per token (0.4 GB for each of four orders) at 128 x 128 tokens."""
    code = """
        import resource, torch
        from metala_vision.kernels import gated_linear_attention
        torch.set_num_threads(2)
        q, g, v = (torch.randn(1, 128 * 128, 3, width, requires_grad=True) for width in (32, 32, 64))
        orders = ("row", "row_reverse", "column", "column_reverse")
        out = gated_linear_attention(q, -torch.nn.functional.softplus(g), v, grid=(128, 128), scan=orders)
        out.square().mean().backward()
        assert all(x.grad.isfinite().all() for x in (q, g, v))
        try:  # ru_maxrss starts from the parent's peak, VmHWM from zero
            peak = next(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith("VmHWM"))
        except (OSError, StopIteration):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(peak / 2**20)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=200
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 2.0, "GB at the peak"
