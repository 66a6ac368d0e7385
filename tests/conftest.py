"""What every test shares: two threads that wait without spinning, and a fixed seed."""

import os

# Read when torch loads OpenMP. Threads that spin at each barrier make a run beside another one 50 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(2)


def pytest_configure(config: pytest.Config) -> None:
    # The interpreter of Triton before 3.7 takes an array of one element for an integer, which numpy 2.4 ends
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array with ndim:DeprecationWarning")


# Files of few tests that take long. Two workers that get them last end minutes apart.
LONG = (
    *("engine/test_distributed.py", "engine/test_dense_distributed.py", "engine/test_interruption.py"),
    *("profiling/test_throughput.py", "profiling/test_gpu_report.py", "kernels/test_gpu_compile.py"),
    *("kernels/test_sanitizers.py", "engine/test_dense_training.py", "engine/test_resuming.py"),
    *("test_bare_checkout.py", "test_beside_others.py", "test_docs.py", "kernels/test_native_in_use.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
