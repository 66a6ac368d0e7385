"""What every test shares: two threads that wait without spinning, and a fixed seed."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Read when torch loads OpenMP. Threads that spin at each barrier make a run beside another one 50 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(2)

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    # The interpreter of Triton before 3.7 takes an array of one element for an integer, which numpy 2.4 ends
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array with ndim:DeprecationWarning")


# Files of few tests that take long. Two workers that get them last end minutes apart.
LONG = (
    *("engine/test_distributed.py", "engine/test_dense_distributed.py", "engine/test_interruption.py"),
    *("profiling/test_throughput.py", "profiling/test_gpu_report.py", "kernels/test_gpu_compile.py"),
    *(
        "kernels/test_sanitizers.py",
        "engine/test_dense_training.py",
        "engine/test_resuming.py",
        "deploy/test_export.py",
    ),
    *("test_bare_checkout.py", "test_beside_others.py", "test_docs.py", "kernels/test_native_in_use.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def load_tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Callable[..., dict]]]:
    """Runs a tool in this process: load_tool("test.py")(*arguments) -> its result."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])

    def load(name: str) -> Callable[..., dict]:
        spec = importlib.util.spec_from_file_location("tool_of_tests", ROOT / "tools" / name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        def run(*arguments: str) -> dict:
            monkeypatch.setattr(sys, "argv", [name, *arguments])
            return module.main(module.parse_args())

        return run

    yield load
    sys.modules.pop("arguments")
