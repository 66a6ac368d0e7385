"""The matrix of versions: what README says of it, what setup.cfg admits, and how a run is read."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = json.loads((ROOT / "results" / "compat.json").read_text())


@pytest.fixture(scope="module")
def tool():
    """tools/compat.py as a module, which finds compat_suites.py beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        yield importlib.import_module("compat")


@pytest.fixture(scope="module")
def suites(tool):
    """tools/compat_suites.py as a module."""
    return sys.modules["compat_suites"]


@pytest.fixture
def small_tests(tmp_path) -> Path:
    """A folder with a test that passes and a file that is skipped as a whole."""
    (tmp_path / "test_good.py").write_text("def test_good(): pass\n")
    (tmp_path / "test_absent.py").write_text('import pytest\npytest.skip("it isn\'t here", allow_module_level=True)\n')
    return tmp_path


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


def test_a_bound_that_is_missing_is_an_error(tool, tmp_path, monkeypatch):
    """Catches a row that quietly installs whatever pip likes."""
    text = (ROOT / "setup.cfg").read_text()
    (tmp_path / "setup.cfg").write_text(text.replace("torchvision>=0.24,<1", "torchvision"))
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="setup.cfg gives torchvision no bounds of the form >=X,<Y"):
        tool.rows()


def test_a_report_is_read_with_its_reasons(suites, tmp_path):
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
    assert suites.read_report(report) == {
        "passed": 2,
        "failures": ["tests.x::bad", "tests.x::torn"],
        "skipped": {"no sanitizer here": 2},
        "properties": [{"kernels": [1]}],
    }


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_run_that_broke_off_has_failed(suites, small_tests, code):
    """Catches an exit code that nobody reads: a report of the tests up to an internal error has no failure in it."""
    end = f"def pytest_sessionfinish(session, exitstatus):\n    session.exitstatus = {code}\n"
    (small_tests / "conftest.py").write_text(end if code else "")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(small_tests)]
    found = suites.run_suite(command, small_tests / "junit.xml", interpreted=False)
    assert (found["passed"], found["skipped"]) == (1, {"it isn't here": 1})
    assert found["failed"] == (code != 0), found["failures"]
    assert all(text.startswith(f"pytest ended with exit code {code}") for text in found["failures"])


def test_what_is_left_out_is_counted(suites, small_tests):
    """Catches tests that are deselected without a word, and a count of tests that cannot be collected."""
    (small_tests / "test_long.py").write_text("import pytest\n@pytest.mark.slow\ndef test_it(): pass\n")
    ((reason, count),) = suites.left_out(Path(sys.executable), [str(small_tests)], interpreted=False).items()
    assert reason.startswith("slow: takes long")
    assert count == 1
    (small_tests / "test_torn.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(suites.RowError, match="pytest cannot collect"):
        suites.left_out(Path(sys.executable), [str(small_tests)], interpreted=False)


def test_a_python_is_found_or_said_to_be_missing(tool, suites, tmp_path, monkeypatch):
    """Catches a shim that is on PATH and does not run, and another version taken for the one that was asked for."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shim = tmp_path / "python3.97"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert suites.find_python(version, {}) == sys.executable
    with pytest.raises(suites.RowError, match=r"does not run as Python 3.97: give --python 3.97=PATH"):
        suites.find_python("3.97", {"3.97": sys.executable})
    monkeypatch.setattr(tool, "rows", lambda: [tool.Row("future", "3.97", ())])
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["compat.py", "--out", str(out), "--folder", str(tmp_path), "--json"])
    assert tool.main() == 1
    status = json.loads(out.read_text())["rows"]["future"]["status"]
    assert status == "no Python 3.97 here: install Python 3.97 or give --python 3.97=PATH"


@pytest.mark.parametrize("given", ["3.12", "3.97=/bin/python", "3.12="])
def test_an_interpreter_that_no_row_takes_is_an_error(tool, given, monkeypatch, capsys):
    """Catches a traceback, and a typing error that is passed over."""
    monkeypatch.setattr(sys, "argv", ["compat.py", "--python", given])
    with pytest.raises(SystemExit, match="2"):
        tool.main()
    assert f"got '{given}', expected VERSION=PATH with a version out of 3.10, 3.12, 3.13" in capsys.readouterr().err


def test_the_time_left_is_what_the_suites_took_before(suites, monkeypatch):
    """Catches an estimate that counts what is done, or nothing where a suite has never run."""
    monkeypatch.setattr(suites.time, "monotonic", lambda: 0.0)
    progress = suites.Progress({("a", "x"): 60, ("a", "y"): None, ("b", "x"): 120})
    assert str(progress) == "0:00 elapsed, about 4:30 left"
    progress.done("a", "x", 90)
    assert str(progress) == "0:00 elapsed, about 3:30 left"
    progress.done("a")
    assert str(progress) == "0:00 elapsed, about 2:00 left"
    assert str(suites.Progress({("a", "x"): None})) == "0:00 elapsed, time left unknown until a suite has run"


def test_it_needs_the_standard_library_alone():
    """Catches an import that a plain Python does not have: the tool makes the environments that have them."""
    command = [sys.executable, "-E", "-s", "-S", str(ROOT / "tools" / "compat.py"), "--list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch==2.9" in done.stdout
