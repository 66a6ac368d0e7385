#!/usr/bin/env python3
"""Run the tests of kernels, layers and models, and of training, in an environment for each row of a table of versions.

An environment is made in build/compat with the packages that these tests need and nothing else, and is kept for the
next time. The tests run from the checkout. Those that run the Triton kernels in the interpreter have a process of their
own; others compile the kernels for GPUs that need not be there. Every test that is skipped or left out is counted with
its reason. Needs nothing but Python's standard library; the exit code is 0 only if every row has passed.
"""

import argparse
import configparser
import json
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

from compat_suites import (
    ROOT,
    Progress,
    RowError,
    collected,
    find_python,
    left_out,
    machine,
    make_environment,
    minutes,
    read_versions,
    run_suite,
    say,
)

TESTS = ["tests/kernels", "tests/layers", "tests/models"]
ENGINE = ["tests/engine", "tests/data", "tests/dense"]
MATRIX = ["tests/kernels/test_gpu_compile.py", "-m", "slow or not slow"]
TARGET = "sm_90"
BOUNDED = ("torch", "torchvision", "timm", "triton")  # packages whose oldest and newest releases setup.cfg names
# What the tests need beside them.
HARNESS = ("pytest>=8,<10", "pytest-timeout", "pytest-xdist", "expecttest", "rich", "filelock", "pillow")
# The interpreter of Triton before 3.7 takes an array of one element for an integer, which numpy 2.4 refuses.
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
    """What setup.cfg requires beside `BOUNDED`, with the maintained fork of mmengine-lite in its place."""
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
    parser.add_argument(
        "--python",
        action="append",
        type=version_and_path,
        default=[],
        metavar="3.X=PATH",
        help="an interpreter to take; more than once for several versions",
    )
    parser.add_argument("--processes", type=int, default=2, help="of pytest-xdist (default: 2)")
    parser.add_argument("--rebuild", action="store_true", help="make the environments anew")
    parser.add_argument("--compile-matrix", action="store_true", help="also every kernel's registers on sm_90")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "compat", help="of the environments")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "compat.json", metavar="FILE")
    parser.add_argument("--readme", action="store_true", help="write README's table from --out and do nothing else")
    parser.add_argument("--json", action="store_true", help="print nothing but the result on stdout")
    return parser.parse_args()


def version_and_path(text: str) -> tuple[str, str]:
    """One value of --python as version and path."""
    version, _, path = text.partition("=")
    versions = sorted({row.python for row in rows()})
    if version not in versions or not path:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected VERSION=PATH with a version out of {', '.join(versions)}"
        )
    return version, path


def suites_of(row: Row, matrix: bool) -> dict[str, list[str]]:
    """The arguments of pytest for each suite of a row. The interpreter's tests need a process of their own."""
    if row.engine:
        return {"engine, data, dense": ENGINE}
    suites = {"kernels, layers, models": TESTS, "interpreter": ["tests/interpreter"]}
    return suites | ({"compile matrix": [*MATRIX, "-k", TARGET]} if matrix else {})


def run_row(row: Row, args: argparse.Namespace, progress: Progress) -> dict:
    """Versions, passed, skipped with reasons, left out with reasons, and failures of one environment.

    Raises:
        RowError: there is no such environment, or its tests cannot be collected.
    """
    start = time.monotonic()
    home = args.folder.resolve() / re.sub(r"\W+", "_", row.name)
    python = find_python(row.python, dict(args.python))
    interpreter = make_environment(home, python, [*row.packages, *HARNESS], args.rebuild)
    versions = read_versions(interpreter)
    warnings = [PY_3_13_0] if versions["python"] == "3.13.0" else []
    command = [str(interpreter), "-m", "pytest", "-q", "-rs", "--tb=short"]
    command += ["-n", str(args.processes), "--dist", "loadfile"]
    for message, _ in warnings:
        command += ["-W", message]
    found = {"versions": versions, **machine(), "ignored": [f"{message}: {reason}" for message, reason in warnings]}
    suites = suites_of(row, args.compile_matrix)
    for name, tests in suites.items():
        say(f"{row.name}: {name}; {progress}")
        suite = run_suite([*command, *tests], home / "junit.xml", name == "interpreter")
        properties = suite.pop("properties")
        if name == "compile matrix":
            found["matrix"] = properties
            others = collected(interpreter, MATRIX) - collected(interpreter, tests)
            suite["deselected"] = {f"-k {TARGET}: compiled for another GPU": others}
        else:
            suite["deselected"] = left_out(interpreter, tests, name == "interpreter")
        found[name] = suite
        progress.done(row.name, name, suite["seconds"])
    passed = all(found[name]["passed"] and not found[name]["failed"] for name in suites)
    return found | {"status": "passed" if passed else "failed", "seconds": round(time.monotonic() - start)}


def describe(name: str, row: dict) -> str:
    """A row in words: versions, and for every suite what passed, what did not run and why, and what failed."""
    if "versions" not in row:
        return f"{name}: {row['status']}"
    versions = ", ".join(f"{package} {version}" for package, version in row["versions"].items())
    where = f"{row['processor']}, {row['platform']}"
    lines = [f"{name}: {row['status']} in {minutes(row['seconds'])} ({versions}; {where})"]
    lines += [f"  warning ignored: {text}" for text in row["ignored"]]
    for suite, x in row.items():
        if not isinstance(x, dict) or "passed" not in x:
            continue
        lines.append(f"  {suite}: {x['passed']} passed of {x['passed'] + x['failed']} in {minutes(x['seconds'])}")
        lines += [f"    skipped {count}: {reason}" for reason, count in x["skipped"].items()]
        lines += [f"    left out {count}: {reason}" for reason, count in x["deselected"].items()]
        lines += [f"    failed: {test}" for test in x["failures"]]
    return "\n".join(lines)


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
    """Writes a file as a whole, by renaming. The compile matrix is left out of rows: it has a file of its own."""
    if "rows" in content:
        rows = {name: {key: x for key, x in row.items() if key != "matrix"} for name, row in content["rows"].items()}
        content = content | {"rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def main() -> int:
    """The exit code."""
    args = parse_args()
    known = {row.name: row for row in rows()}
    if args.list:
        for row in known.values():
            print(f"{row.name:10} Python {row.python}: {', '.join(row.packages)}")
        return 0
    content = {"rows": json.loads(args.out.read_text())["rows"] if args.out.exists() else {}}
    if args.readme:
        write_readme(content)
        return 0
    if unknown := [name for name in args.rows if name not in known]:
        raise SystemExit(f"error: got {unknown}, expected rows out of {list(known)}, in quotes where there is a blank")
    chosen = [known[name] for name in args.rows or known]
    former = {
        (row.name, suite): content["rows"].get(row.name, {}).get(suite, {}).get("seconds")
        for row in chosen
        for suite in suites_of(row, args.compile_matrix)
    }
    progress = Progress(former)
    for row in chosen:
        try:
            found = run_row(row, args, progress)
        except RowError as error:
            found = {"status": str(error)}
        progress.done(row.name)
        say(f"{describe(row.name, found)}\n{progress}")
        content["rows"][row.name] = found
        content["rows"] = {name: content["rows"][name] for name in known if name in content["rows"]}
        save(args.out, content)
        save_matrix(args.out.with_name("compile_matrix.json"), content)
    result = {row.name: content["rows"][row.name]["status"] for row in chosen}
    print(json.dumps(result) if args.json else table(content))
    return 0 if set(result.values()) == {"passed"} else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted: the rows that were done are in --out", file=sys.stderr)
        sys.exit(130)
