#!/usr/bin/env python3
"""Run the tests of kernels, layers and models, and of training, in an environment for each row of a table of versions.

An environment is made in build/compat with the packages that these tests need and nothing else, and is kept for the
next time. The tests run from the checkout; those of the Triton kernels in the interpreter have a process of their own,
and the kernels are compiled for GPUs that need not be there. Every test that is skipped or left out is counted with its
reason. Needs nothing but Python's standard library; the exit code is 0 only if every row has passed.
"""

import argparse
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
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["tests/kernels", "tests/layers", "tests/models"]
ENGINE = ["tests/engine", "tests/data", "tests/dense"]
MATRIX = "tests/kernels/test_gpu_compile.py"
BOUNDED = ("torch", "torchvision", "timm", "triton")  # whose oldest and newest releases setup.cfg names
# What the tests need beside those.
HARNESS = ("pytest>=8,<10", "pytest-timeout", "pytest-xdist", "expecttest", "rich", "filelock", "pillow")
# Triton before 3.7 takes an array of one element for an integer in its interpreter, which numpy 2.4 ended.
OLD_NUMPY = "numpy<2.4"
PY_3_13_0 = ("ignore:Guards may run slower:RuntimeWarning", "a fault of Python 3.13.0 that 3.13.1 does not have")
EXAMPLES = """examples:
  python tools/compat.py                                  every row
  python tools/compat.py oldest --python 3.10=/opt/python3.10/bin/python
  python tools/compat.py --compile-matrix                 and every Triton kernel compiled for sm_90, with its registers
  python tools/compat.py --readme                         write README's table from results/compat.json
"""


class Row(NamedTuple):
    """One environment."""

    name: str
    python: str
    packages: tuple[str, ...]  # requirements beside HARNESS
    engine: bool = False  # training's tests instead of those of kernels, layers and models


def rows() -> list[Row]:
    """The table. The oldest releases are the lower bounds of setup.cfg, the newest what its upper bounds admit."""
    bounds = read_bounds()
    oldest = tuple(f"{name}=={lower}" for name, (lower, _) in bounds.items())
    newest = tuple(f"{name}>={lower},<{upper}" for name, (lower, upper) in bounds.items())
    image = ("torch==2.11.0", "torchvision==0.26.0", "triton==3.6.0", f"timm=={bounds['timm'][0]}", OLD_NUMPY)
    return [
        Row("oldest", "3.10", (*oldest, OLD_NUMPY)),
        Row("GPU image", "3.12", image),
        Row("newest", "3.13", (*newest, "numpy")),
        Row("newest, onedl-mmengine", "3.13", (*newest, *training()), engine=True),
    ]


def training() -> list[str]:
    """What setup.cfg asks for beside those, with the maintained fork in the place of mmengine-lite."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    lines = [config["options"]["install_requires"], *(extras[name] for name in ("train", "detection", "segmentation"))]
    wanted = [line for text in lines for line in text.splitlines() if line and not line.startswith("#")]
    kept = [line for line in wanted if not line.startswith((*BOUNDED, "mmengine-lite"))]
    return [*kept, "onedl-mmengine>=0.10.12,<0.11"]


def read_bounds() -> dict[str, tuple[str, str]]:
    """Lower and upper bounds by package, as setup.cfg has them."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    text = config["options"]["install_requires"]
    found = {}
    for name in BOUNDED:
        match = re.search(rf"^{name}>=([\w.]+),<([\w.]+)", text, re.MULTILINE)
        if match is None:
            raise SystemExit(f"error: setup.cfg gives {name} no bounds of the form >=X,<Y")
        found[name] = match.groups()
    return found


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="names of rows (default: all)")
    parser.add_argument("--list", action="store_true", help="print the table and do nothing")
    parser.add_argument("--python", nargs="+", default=[], metavar="3.X=PATH", help="interpreters that are not found")
    parser.add_argument("--processes", type=int, default=2, help="of pytest-xdist (default: 2)")
    parser.add_argument("--rebuild", action="store_true", help="make the environments anew")
    parser.add_argument("--compile-matrix", action="store_true", help="also every kernel's registers on sm_90")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "compat", help="of the environments")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "compat.json", metavar="FILE")
    parser.add_argument("--readme", action="store_true", help="write README's table from --out and do nothing else")
    parser.add_argument("--json", action="store_true", help="print nothing but the result on stdout")
    return parser.parse_args()


def find_python(version: str, given: dict[str, str]) -> str | None:
    """An interpreter of this version that runs: a given one, on PATH, pyenv's or uv's."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [given[version]] if version in given else [sys.executable, f"python{version}"]
    if version not in given:
        candidates += [str(path) for path in sorted(root.glob(f"versions/{version}.*/bin/python"), reverse=True)]
        if uv := shutil.which("uv"):
            found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False)
            candidates.append(found.stdout.strip())
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        try:
            done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        except OSError:
            continue  # not there
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


def make_environment(row: Row, python: str, folder: Path, rebuild: bool) -> Path:
    """The interpreter of an environment with the row's packages; one that has them already is taken as it is."""
    home = folder / re.sub(r"\W+", "_", row.name)
    stamp, wanted = home / "requirements.json", json.dumps([python, *row.packages, *HARNESS])
    interpreter = home / "bin" / "python"
    if not rebuild and stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    shutil.rmtree(home, ignore_errors=True)
    say(f"{row.name}: making {home}, which downloads some gigabytes the first time")
    subprocess.run([python, "-m", "venv", str(home)], check=True)
    install = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *row.packages, *HARNESS], check=True, stdout=sys.stderr)
    stamp.write_text(wanted)
    return interpreter


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


def run_row(row: Row, python: str, args: argparse.Namespace) -> dict:
    """Versions, passed, skipped with reasons, left out with reasons, and failures of one environment."""
    interpreter = make_environment(row, python, args.folder, args.rebuild)
    done = subprocess.run([interpreter, "-c", VERSIONS], capture_output=True, text=True, check=True)
    versions = json.loads(done.stdout)
    warnings = [PY_3_13_0] if versions["python"] == "3.13.0" else []
    command = [str(interpreter), "-m", "pytest", "-q", "--tb=short", "-n", str(args.processes), "--dist", "loadfile"]
    for message, _ in warnings:
        command += ["-W", message]
    found = {"versions": versions, "ignored": [f"{message}: {reason}" for message, reason in warnings]}
    start = time.monotonic()
    suites = {"kernels, layers, models": TESTS, "interpreter": ["tests/interpreter"]}
    if row.engine:
        suites = {"engine, data, dense": ENGINE}
    elif args.compile_matrix:
        suites["compile matrix"] = [MATRIX, "-m", "slow or not slow", "-k", "sm_90"]
    for name, tests in suites.items():
        say(f"{row.name}: {name}")
        found[name] = run_suite([*command, *tests], args.folder / "junit.xml", name == "interpreter")
        found[name]["deselected"] = {} if name == "compile matrix" else left_out(interpreter, tests)
        if name == "compile matrix":
            found["matrix"] = found[name].pop("properties")
        found[name].pop("properties", None)
    counted = [found[name] for name in suites]
    found["status"] = "passed" if all(x["failed"] == 0 and x["passed"] for x in counted) else "failed"
    return found | {"seconds": round(time.monotonic() - start)}


def run_suite(command: list[str], report: Path, interpreted: bool) -> dict:
    """One pytest run by its JUnit report and its last line."""
    report.unlink(missing_ok=True)
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = str(ROOT)  # for the processes that tests start elsewhere
    process = subprocess.Popen(
        [*command, f"--junitxml={report}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = []
    for line in process.stdout:
        output.append(line)
        print(line, end="", file=sys.stderr)
    process.wait()
    if not report.exists():
        return {"passed": 0, "failed": 1, "failures": ["".join(output[-5:])], "skipped": {}}
    return read_report(report)


def left_out(interpreter: Path, tests: list[str]) -> dict[str, int]:
    """How many tests the default selection leaves out, by the marker that does it as setup.cfg describes it."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    markers = [line for line in config["tool:pytest"]["markers"].splitlines() if line]
    counts = {}
    for marker in markers:
        chosen = ["-m", marker.split(":")[0], *tests]
        command = [str(interpreter), "-m", "pytest", "--collect-only", "-q", *chosen]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        counts[marker] = sum("::" in line for line in done.stdout.splitlines())
    return {marker: count for marker, count in counts.items() if count}


def read_report(report: Path) -> dict:
    """Counts, skips by their reasons, and the properties that tests have recorded."""
    passed, failures, skipped, properties = 0, [], {}, []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag: child for child in case}
        name = f"{case.get('classname')}::{case.get('name')}"
        if "failure" in kinds or "error" in kinds:
            failures.append(name)
        elif "skipped" in kinds:
            reason = kinds["skipped"].get("message", "")
            skipped[reason] = skipped.get(reason, 0) + 1
        else:
            passed += 1
        properties += [json.loads(item.get("value")) for item in case.iter("property") if item.get("name") == "kernels"]
    return {
        "passed": passed,
        "failed": len(failures),
        "failures": failures,
        "skipped": skipped,
        "properties": properties,
    }


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def table(content: dict) -> str:
    """README's table."""
    columns = ("python", "torch", "triton", "torchvision", "timm", "numpy")
    suites = "kernels, layers, models | Triton's interpreter | engine, data, dense"
    lines = [f"| | {' | '.join(columns)} | {suites} |", f"|{' --- |' * (len(columns) + 4)}"]
    for name, row in content["rows"].items():
        if "versions" not in row:
            lines.append(f"| {name} |{' |' * len(columns)} {row['status']} | | |")
            continue
        suites = [row.get(name) for name in ("kernels, layers, models", "interpreter", "engine, data, dense")]
        counts = ["" if x is None else f"{x['passed']} of {x['passed'] + x['failed']}" for x in suites]
        versions = [row["versions"][column].split("+")[0] for column in columns]
        lines.append(f"| {name} | {' | '.join(versions)} | {' | '.join(counts)} |")
    return "\n".join(lines)


BEGIN, END = "<!-- compat: made by tools/compat.py --readme -->", "<!-- /compat -->"


def write_readme(content: dict) -> None:
    """Puts the table where README has it."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"error: README.md has no {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n{table(content)}\n{END}{after}", encoding="utf-8")


def save_matrix(path: Path, content: dict) -> None:
    """Registers, spilled bytes and shared memory of every kernel, by the version of Triton that compiled it."""
    matrix = json.loads(path.read_text()) if path.exists() else {}
    for row in content["rows"].values():
        if row.get("matrix"):
            versions = row["versions"]
            matrix[f"Triton {versions['triton']}, ptxas {versions['ptxas']}"] = row["matrix"]
    save(path, matrix)


def save(path: Path, content: dict) -> None:
    """Writes beside the file and renames; the compile matrix has a file of its own."""
    if "rows" in content:
        rows = {name: {key: x for key, x in row.items() if key != "matrix"} for name, row in content["rows"].items()}
        content = content | {"rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def processor() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return re.search(r"model name\s*:\s*(.*)", text)[1]
    except (OSError, TypeError):
        return platform.processor()  # another operating system


def main() -> int:
    """The exit code."""
    args = parse_args()
    known = {row.name: row for row in rows()}
    if args.list:
        for row in known.values():
            print(f"{row.name:10} Python {row.python}: {', '.join(row.packages)}")
        return 0
    content = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}
    if args.readme:
        write_readme(content)
        return 0
    if unknown := [name for name in args.rows if name not in known]:
        raise SystemExit(f"error: got {', '.join(unknown)}, expected rows out of {', '.join(known)}")
    given = dict(text.split("=", 1) for text in args.python)
    content |= {"processor": processor(), "system": platform.system()}
    chosen = [known[name] for name in args.rows or known]
    for row in chosen:
        python = find_python(row.python, given)
        if python is None:
            advice = f"install Python {row.python} or give --python {row.python}=PATH"
            content["rows"][row.name] = {"status": f"no Python {row.python} here: {advice}"}
        else:
            try:
                content["rows"][row.name] = run_row(row, python, args)
            except subprocess.CalledProcessError as error:
                content["rows"][row.name] = {"status": f"exit code {error.returncode} of {error.cmd[:4]}"}
        say(f"{row.name}: {content['rows'][row.name]['status']}")
        content["rows"] = {name: content["rows"][name] for name in known if name in content["rows"]}
        save(args.out, content)
        save_matrix(args.out.with_name("compile_matrix.json"), content)
    result = {name: content["rows"][name]["status"] for name in (row.name for row in chosen)}
    print(json.dumps(result) if args.json else table(content))
    return 0 if set(result.values()) == {"passed"} else 1


if __name__ == "__main__":
    sys.exit(main())
