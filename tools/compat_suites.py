"""What tools/compat.py does in one environment: finds a Python, installs, runs tests, and reads what they report.

It needs Python's standard library alone, like tools/compat.py itself.
"""

import ast
import configparser
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENDS = {0: "passed", 1: "some tests failed", 2: "interrupted", 3: "internal error", 4: "wrong usage", 5: "no tests"}
PASSED, FAILED = 0, 1  # exit codes of pytest after which every test that was chosen has run
# Run by the Python of an environment.
VERSIONS = """
import importlib.metadata as m, inspect, json, platform, re, subprocess
from triton.backends.nvidia.compiler import get_ptxas
found = {"python": platform.python_version()}
found |= {n: m.version(n) for n in ("torch", "torchvision", "triton", "timm", "numpy")}
ptxas = get_ptxas(*[90] * len(inspect.signature(get_ptxas).parameters)).path
text = subprocess.run([ptxas, "--version"], capture_output=True, text=True).stdout
found["ptxas"] = re.search(r"V([0-9.]+)", text)[1]
print(json.dumps(found))
"""


class RowError(Exception):
    """A row that could not be run, with the reason."""


def find_python(version: str, given: dict[str, str]) -> str:
    """An interpreter of this version that runs: a given one, or one on PATH, pyenv's or uv's.

    Raises:
        RowError: there is none; the message says what to do.
    """
    if version in given:
        if not runs_as(given[version], version):
            raise RowError(f"{given[version]} does not run as Python {version}: give --python {version}=PATH of one")
        return given[version]
    root = Path(os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv")))
    candidates = [sys.executable, f"python{version}"]
    candidates += [str(path) for path in sorted(root.glob(f"versions/{version}.*/bin/python"), reverse=True)]
    if uv := shutil.which("uv"):
        found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False)
        candidates.append(found.stdout.strip())
    for candidate in filter(None, candidates):
        if runs_as(candidate, version):
            return candidate
    raise RowError(f"no Python {version} here: install Python {version} or give --python {version}=PATH")


def runs_as(python: str, version: str) -> bool:
    """Whether this is an interpreter of that version. A shim of pyenv is on PATH and may still not run."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return False  # not there
    return done.returncode == 0 and done.stdout.strip() == version


def make_environment(home: Path, python: str, packages: list[str], rebuild: bool) -> Path:
    """The interpreter of an environment with these packages. One that was made of the same packages is reused.

    Raises:
        RowError: the packages could not be installed.
    """
    stamp, wanted = home / "requirements.json", json.dumps([python, *packages])
    interpreter = home / "bin" / "python"
    if not rebuild and stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    shutil.rmtree(home, ignore_errors=True)
    say(f"making {home}, which downloads some gigabytes the first time")
    install = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    for command in ([python, "-m", "venv", str(home)], install):
        code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        if code:
            raise RowError(f"exit code {code} of {' '.join(command[1:4])}, whose output is above")
    stamp.write_text(wanted)
    return interpreter


def read_versions(interpreter: Path) -> dict[str, str]:
    """Exact versions of Python, of the packages, and of the assembler that Triton takes for sm_90.

    Raises:
        RowError: a package is missing or does not import.
    """
    done = subprocess.run([interpreter, "-c", VERSIONS], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RowError(f"{interpreter} does not tell its versions ({reason}): try --rebuild")
    return json.loads(done.stdout)


def environment(interpreted: bool) -> dict[str, str]:
    """The variables of pytest. They put the checkout on the path, also for processes that tests start elsewhere."""
    triton = "1" if interpreted else "0"
    return {**os.environ, "TRITON_INTERPRET": triton, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}


def run_suite(command: list[str], report: Path, interpreted: bool) -> dict:
    """Runs pytest and reads its exit code and JUnit report. A run that broke off has failed, whatever it reports."""
    start = time.monotonic()
    report.unlink(missing_ok=True)
    code = subprocess.run(
        [*command, f"--junitxml={report}"], cwd=ROOT, env=environment(interpreted), stdout=sys.stderr, check=False
    ).returncode
    found = read_report(report) if report.exists() else {"passed": 0, "failures": [], "skipped": {}, "properties": []}
    if code not in (PASSED, FAILED) or (code == FAILED and not found["failures"]):
        found["failures"].append(f"pytest ended with exit code {code}: {ENDS.get(code, 'killed')}")
    return found | {"failed": len(found["failures"]), "seconds": round(time.monotonic() - start)}


def read_report(report: Path) -> dict:
    """Counts, skips by their reasons, and the properties that tests have recorded."""
    passed, failures, skipped, properties = 0, [], {}, []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag: child for child in case}
        if "failure" in kinds or "error" in kinds:
            failures.append(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" in kinds:
            reason = kinds["skipped"].get("message", "")
            if reason == "collection skipped":  # a whole file: the text is a tuple of path, line and reason
                reason = ast.literal_eval(kinds["skipped"].text)[2].removeprefix("Skipped: ")
            skipped[reason] = skipped.get(reason, 0) + 1
        else:
            passed += 1
        properties += [json.loads(item.get("value")) for item in case.iter("property") if item.get("name") == "kernels"]
    return {"passed": passed, "failures": failures, "skipped": skipped, "properties": properties}


def left_out(interpreter: Path, tests: list[str], interpreted: bool) -> dict[str, int]:
    """How many tests the default selection leaves out, by marker, each with its description in setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    markers = [line for line in config["tool:pytest"]["markers"].splitlines() if line]
    counts = {x: collected(interpreter, [*tests, "-m", x.split(":")[0]], interpreted) for x in markers}
    return {marker: count for marker, count in counts.items() if count}


def collected(interpreter: Path, chosen: list[str], interpreted: bool = False) -> int:
    """How many tests pytest would run.

    Raises:
        RowError: pytest cannot collect them.
    """
    command = [str(interpreter), "-m", "pytest", "--collect-only", "-q", *chosen]
    done = subprocess.run(command, cwd=ROOT, env=environment(interpreted), capture_output=True, text=True, check=False)
    if done.returncode not in (0, 5):  # 5: there is no such test
        raise RowError(f"pytest cannot collect {' '.join(chosen)}:\n{done.stdout[-2000:]}")
    return sum("::" in line for line in done.stdout.splitlines())


def machine() -> dict[str, str]:
    """The processor's name and the platform."""
    try:
        name = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):
        name = platform.processor()  # another operating system, or a processor without such a line
    return {"processor": name, "platform": f"{platform.system()} {platform.machine()}"}


class Progress:
    """How long a run has taken, and how much longer it will take, judged by what its suites took before."""

    def __init__(self, former: dict[tuple[str, str], float | None]):
        """`former`: seconds by row and suite. None is unknown: such a suite is assumed to take the others' mean."""
        self.left, self.known = dict(former), [seconds for seconds in former.values() if seconds]
        self.start = time.monotonic()

    def done(self, row: str, suite: str | None = None, seconds: float | None = None) -> None:
        """Takes a suite, or what is left of a row, off the list."""
        self.left = {key: x for key, x in self.left.items() if key[0] != row or suite not in (None, key[1])}
        self.known += [seconds] if seconds else []

    def __str__(self) -> str:
        passed = f"{minutes(time.monotonic() - self.start)} elapsed"
        if not self.known:
            return f"{passed}, time left unknown until a suite has run"
        mean = sum(self.known) / len(self.known)
        return f"{passed}, about {minutes(sum(x or mean for x in self.left.values()))} left"


def minutes(seconds: float) -> str:
    """Seconds as minutes, such as 12:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
