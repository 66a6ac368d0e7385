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


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
