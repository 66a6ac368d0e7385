"""The Triton kernels in Triton's interpreter: TRITON_INTERPRET=1 python -m pytest tests/interpreter

Triton reads the variable when a kernel is defined, so that this takes a process of its own.
"""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "kernels"))  # gla_inputs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    skip = pytest.mark.skip(reason="TRITON_INTERPRET=1 is not set: the interpreter takes a process of its own")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)
