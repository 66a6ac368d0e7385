"""The matrix of versions: what README says of it, what setup.cfg admits, and how a run is read."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = json.loads((ROOT / "results" / "compat.json").read_text())


@pytest.fixture(scope="module")
def tool():
    """tools/compat.py as a module."""
    spec = importlib.util.spec_from_file_location("compat", ROOT / "tools" / "compat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_says_what_was_run(tool):
    """Catches a table that a later run, or a hand, has left behind."""
    text = (ROOT / "README.md").read_text()
    assert f"{tool.BEGIN}\n{tool.table(RESULTS)}\n{tool.END}" in text, "run tools/compat.py --readme"
    assert set(RESULTS["rows"]) == {row.name for row in tool.rows()}
    assert {row["status"] for row in RESULTS["rows"].values()} == {"passed"}


def test_the_oldest_row_is_what_setup_cfg_admits(tool):
    """Catches a lower bound that nobody has tried."""
    versions = RESULTS["rows"]["oldest"]["versions"]
    for name, (lower, _) in tool.read_bounds().items():
        assert f"{versions[name].split('+')[0]}.0".startswith(f"{lower}."), name
    assert versions["python"].startswith("3.10.")


def test_no_kernel_spills():
    """Catches a Triton that leaves registers no room, in the matrix that was compiled for sm_90."""
    matrix = json.loads((ROOT / "results" / "compile_matrix.json").read_text())
    assert {name.split(",")[0].rpartition(".")[0] for name in matrix} >= {"Triton 3.6"}
    for name, cells in matrix.items():
        assert len(cells) > 30, name
        kernels = [kernel for cell in cells for kernel in cell["kernels"]]
        assert {cell["target"] for cell in cells} == {"sm_90"}
        assert {kernel["spilled"] for kernel in kernels} == {0}, name
        assert max(kernel["registers"] for kernel in kernels) <= 255


def test_a_report_is_read_with_its_reasons(tool, tmp_path):
    """Catches tests that are skipped without a word."""
    case = '<testcase classname="tests.x" name="{}">{}</testcase>'
    kernels = json.dumps({"kernels": [1]}).replace('"', "&quot;")
    cases = [
        case.format("good", ""),
        case.format("matrix", f'<properties><property name="kernels" value="{kernels}"/></properties>'),
        case.format("bad", '<failure message="no">trace</failure>'),
        case.format("torn", '<error message="no">trace</error>'),
        *2 * [case.format("not here", '<skipped message="no sanitizer here">file</skipped>')],
    ]
    report = tmp_path / "junit.xml"
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    found = tool.read_report(report)
    assert found == {
        "passed": 2,
        "failed": 2,
        "failures": ["tests.x::bad", "tests.x::torn"],
        "skipped": {"no sanitizer here": 2},
        "properties": [{"kernels": [1]}],
    }


def test_what_is_left_out_is_counted(tool):
    """Catches tests that are deselected without a word: pytest-xdist does not say how many."""
    found = tool.left_out(Path(sys.executable), ["tests/kernels/test_gpu_compile.py"])
    (reason,) = found
    assert reason.startswith("slow: takes long")
    assert found[reason] > 100


def test_a_python_is_found_or_said_to_be_missing(tool, tmp_path, monkeypatch):
    """Catches a shim that is on PATH and does not run, and another version taken for the one that was asked for."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shim = tmp_path / "python3.97"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert tool.find_python(version, {}) == sys.executable
    assert tool.find_python("3.97", {}) is None
    assert tool.find_python("3.97", {"3.97": sys.executable}) is None
    monkeypatch.setattr(tool, "rows", lambda: [tool.Row("future", "3.97", ())])
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["compat.py", "--out", str(out), "--json"])
    assert tool.main() == 1
    status = json.loads(out.read_text())["rows"]["future"]["status"]
    assert status == "no Python 3.97 here: install Python 3.97 or give --python 3.97=PATH"
