#!/usr/bin/env python3
"""Run timm's own model tests on every model of ours.

Fetches the source archive of the installed timm with pip (once, into build/timm-suite), shows its tests/test_models.py
our models only, and fails unless every selected test passed. Needs the test extra.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = """examples:
  python tools/timm_suite.py
  python tools/timm_suite.py --models metala_vit_nano --json
"""

# Tests that cannot hold for our models, by name, with the reason.
DESELECTED = {
    "test_model_default_cfgs_non_std[1-inline_deit_base_patch16_448]": "the suite skips models of more than 320 pixels",
}


def fetch(folder: Path) -> Path:
    """The unpacked source archive of the installed timm, downloaded if it is not there."""
    name = f"timm-{version('timm')}"
    if not (folder / name / "tests" / "test_models.py").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "timm"]
            + ["--dest", str(folder), name.replace("-", "==")],
            check=True,
        )
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder / name


def run(suite: Path, pattern: str | None) -> dict:
    """Runs the suite, on the models with `pattern` in their names; counts and names from its JUnit report."""
    report = suite.parent / "report.xml"
    report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "TORCH_BACKEND": "metala_vision",  # imported by the suite before it lists models
        "TIMEOUT": "900",  # seconds a test: the suite's own 120 are meant for faster machines
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "pytest", "tests/test_models.py", "-c", "pyproject.toml", "-p", "timm_plugin"]
    command += ["-q", f"--junitxml={report}", "-p", "no:cacheprovider", *(["-k", pattern] if pattern else [])]
    for name in DESELECTED:
        command += ["--deselect", f"tests/test_models.py::{name}"]
    code = subprocess.run(command, cwd=suite, env=environment, stdout=sys.stderr).returncode
    cases = list(ElementTree.parse(report).getroot().iter("testcase")) if report.is_file() else []
    bad = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [f"{c.get('name')}: {c.find('skipped').get('message')}" for c in cases if c.find("skipped") is not None]
    return {
        "timm": version("timm"),
        "selected": len(cases),
        "passed": len(cases) - len(bad) - len(skipped),
        "failed": bad,
        "skipped": skipped,
        "deselected": DESELECTED,
        "exit_code": code,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", help="part of the models' names (default: all of ours)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "timm-suite", help="where the suite is kept")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    args = parser.parse_args()
    result = run(fetch(args.folder), args.models)
    if args.json:
        print(json.dumps(result))
    else:
        for kind in ("failed", "skipped"):
            for name in result[kind]:
                print(f"{kind}: {name}")
        for name, reason in DESELECTED.items():
            print(f"deselected: {name}: {reason}")
        print(f"timm {result['timm']} test-suite: {result['passed']} passed of {result['selected']}")
    if result["selected"] == 0:
        print("error: no test was selected", file=sys.stderr)
        return 1
    return int(result["exit_code"] != 0 or result["passed"] != result["selected"])


if __name__ == "__main__":
    sys.exit(main())
