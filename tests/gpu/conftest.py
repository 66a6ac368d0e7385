"""How the tests of a GPU are run in parts and recorded, and rehearsed where there is none.

    pytest -m gpu tests/gpu                                   all of them
    pytest -m gpu tests/gpu/test_gpu.py --shard 2/8           the third of eight parts, each in a process of its own
    pytest -m gpu tests/gpu/test_gpu.py --record FILE         a line of JSON for each test, as it ends
    TRITON_INTERPRET=1 pytest -m gpu tests/gpu/test_gpu.py --rehearse    a few small ones, in the interpreter

tools/gpu_report.py runs them so.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tolerances import for_dtype, relative_rms
from torch import Tensor

from metala_vision.kernels import library


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options above."""
    group = parser.getgroup("gpu")
    group.addoption("--shard", default="0/1", metavar="I/N", help="run every N-th test, beginning with number I")
    group.addoption("--record", metavar="FILE", help="append a line of JSON for each test, as it ends")
    group.addoption("--rehearse", action="store_true", help="the small tests, on the CPU by Triton's interpreter")


def pytest_configure(config: pytest.Config) -> None:
    """Registers what the tests are marked with."""
    config.addinivalue_line("markers", "rehearsed: small enough for Triton's interpreter")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Takes one part of the tests, or a few of the small ones for a rehearsal; skips those that have no GPU."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    rehearse = config.getoption("rehearse", False)
    number, shards = map(int, config.getoption("shard", "0/1").split("/"))
    chosen = [item for item in here if item.get_closest_marker("rehearsed")][::14] if rehearse else here
    chosen = chosen[number::shards]
    left = [item for item in here if item not in chosen]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]
    if not torch.cuda.is_available() and not rehearse:
        skip = pytest.mark.skip(reason="no CUDA device: torch.cuda.is_available() is False")
        for item in chosen:
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Writes how a test ended, what it measured and, if it failed, why: what was written stays if the process dies."""
    report = yield
    file = item.config.getoption("record", None)
    if file and (report.when == "call" or report.outcome != "passed"):
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = {} if report.outcome == "passed" else {"reason": crash.message[:300] if crash else report.longreprtext}
        line = {"test": item.name, "outcome": report.outcome, **dict(item.user_properties), **reason}
        with open(file, "a") as stream:
            stream.write(json.dumps(line) + "\n")
    return report


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where new tensors are made: the GPU, or the CPU in a rehearsal."""
    name = "cpu" if request.config.getoption("rehearse", False) else "cuda"
    with torch.device(name):
        yield name


@pytest.fixture
def backend(device: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend that runs the Triton kernels: in a rehearsal they stand in for those in C."""
    if device == "cuda":
        return "triton"
    from metala_vision.kernels import gpu, gpu_plan

    assert gpu_plan.INTERPRETED, "a rehearsal needs TRITON_INTERPRET=1"
    monkeypatch.setattr(library, "_kernels", lambda x: gpu)
    return "cpu"


@pytest.fixture
def compare(record_property) -> Callable[[dict[str, Tensor], dict[str, Tensor], torch.dtype], None]:
    """Asserts that named results are within the tolerances, and records the errors and a digest of the bits."""

    def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
        errors = {name: relative_rms(actual[name], x) for name, x in expected.items()}
        digest = hashlib.sha256()
        for name in expected:
            digest.update(actual[name].detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())
        record_property("errors", {name: float(f"{error:.2e}") for name, error in errors.items()})
        record_property("digest", digest.hexdigest()[:12])
        too_large = {name: error for name, error in errors.items() if not error <= for_dtype(dtype, name)}
        assert not too_large, f"beyond the tolerances: {too_large}"

    return assert_close
