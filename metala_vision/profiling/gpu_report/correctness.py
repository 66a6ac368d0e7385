"""Whether the kernels compute what they promise: the GPU tests, in many processes and with both assemblers."""

import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metala_vision.profiling.speed.isolated import one_line

from .ceilings import assembler_version, assemblers
from .parts import KEPT, Cell, Job

ROOT = Path(__file__).resolve().parents[3]
TESTS = "tests/gpu/test_gpu.py"
LISTED = 20  # failures that a row names
SHARE = 0.6  # of the part's time for the first assembler: it is the one that users have


def cells(job: Job) -> list[Cell]:
    """The tests with the default assembler, with the other one, and small shapes under compute-sanitizer."""
    capability = torch.cuda.get_device_capability() if job.device == "cuda" else (9, 0)
    known = assemblers(capability)
    default = known[0] if known else None
    others = known[1:2] if capability < (10, 0) else []  # the older one does not know later cards

    def with_other(path: Path) -> dict:
        return tests(job, path.name, path, path, job.left - 20)

    found = [Cell("tests", lambda: tests(job, "default", default, None, SHARE * job.left))]
    found += [Cell(f"tests, {path.name}", partial(with_other, path)) for path in others]
    if job.rehearse:
        return found
    return [*found, *(Cell(tool, partial(sanitizer, job, tool)) for tool in ("memcheck", "racecheck"))]


def tests(job: Job, name: str, version_of: Path | None, assembler: Path | None, seconds: float) -> dict:
    """Runs the GPU tests in several processes, a part of them in each, and ends these when the time is over.

    With the other assembler it runs every second test.

    Returns:
        `passed`, `failed`, `skipped`, `not_run`, `failures` (test and reason), `cases` (errors and a digest of the bits
        of each test), and how many results out of `compared` have `equal_bits` to the first assembler's.
    """
    end = time.monotonic() + seconds
    shards = 1 if job.rehearse else max(1, (os.cpu_count() or 2) * 3 // 4)  # other processes compile meanwhile
    every = 1 if name == "default" or job.rehearse else 2  # half of the tests are enough for the other assembler
    environment = dict(os.environ)
    if assembler is not None and not job.rehearse:
        # A cache of its own, or it would find what the first assembler has made
        environment |= dict.fromkeys(("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"), str(assembler))
        environment["TRITON_CACHE_DIR"] = str(job.scratch / "triton")
    records = [job.scratch / f"{name}_{i}.jsonl" for i in range(shards)]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short", "-p", "no:cacheprovider", TESTS]
    command += ["--rehearse"] if job.rehearse else []
    processes = [
        subprocess.Popen(
            [*command, "--shard", f"{i}/{every * shards}", "--record", str(path)], cwd=ROOT, env=environment
        )
        for i, path in enumerate(records)
    ]
    codes = [_wait(process, end) for process in processes]
    lines = [json.loads(line) for path in records if path.exists() for line in path.read_text().splitlines()]
    cases = {line.pop("test"): line for line in lines}
    _save(job, name, cases)
    outcomes = [case["outcome"] for case in cases.values()]
    row: dict[str, Any] = {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "skipped")}
    row["not_run"] = _collected(command, environment) // every - len(cases) if set(codes) - {0, 1} else 0
    row["failures"] = [f"{test}: {x['reason']}" for test, x in cases.items() if x["outcome"] == "failed"][:LISTED]
    row |= {"assembler": assembler_version(version_of) if version_of else None, "processes": shards}
    if died := sorted({code for code in codes if code not in (0, 1, None)}):
        row["exit_codes"] = died
    row |= _against_first(job, name, cases)
    good = not row["failed"] and not died and row["passed"]
    return {"status": "failed" if not good else "incomplete" if row["not_run"] else "ok", **row, "cases": cases}


def _wait(process: subprocess.Popen, end: float) -> int | None:
    try:
        return process.wait(timeout=max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def _collected(command: list[str], environment: dict) -> int:
    """How many tests there are: asked only where some were not run."""
    done = subprocess.run(
        [*command, "--collect-only"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return sum("::" in line for line in done.stdout.splitlines())


def _save(job: Job, name: str, cases: dict) -> None:
    (job.scratch / f"cases_{name}.json").write_text(json.dumps(cases))


def _against_first(job: Job, name: str, cases: dict) -> dict:
    """How the results agree with those of the first assembler, where both have run."""
    path, kept = job.scratch / "cases_default.json", job.scratch / KEPT
    if name == "default":
        return {}
    if path.exists():
        first = json.loads(path.read_text())
    else:  # from an earlier run of the report, or none
        first = (json.loads(kept.read_text()) if kept.exists() else {}).get("tests", {}).get("cases", {})
    if not first:
        return {}
    both = [test for test in cases if "digest" in cases[test] and "digest" in first.get(test, {})]
    differ = [test for test in both if cases[test]["digest"] != first[test]["digest"]]
    return {"compared": len(both), "equal_bits": len(both) - len(differ), "other_bits": differ[:LISTED]}


def sanitizer(job: Job, tool: str) -> dict:
    """compute-sanitizer on the operators in two small shapes: `errors` is what it has found, in its own words."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"status": "not here", "reason": "compute-sanitizer is not installed"}
    # Without the allocator's cache every tensor has bounds of its own
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [program, "--tool", tool, "--error-exitcode", "9"]
    command += ["--report-api-errors", "no"] if tool == "memcheck" else []  # torch asks for what a driver may not have
    command += [sys.executable, "-m", f"{__package__}.sanitized"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=max(20.0, job.left)
        )
    except subprocess.TimeoutExpired as error:
        return {"status": "too slow", "reason": one_line(error)}
    print(done.stdout, done.stderr, sep="\n")
    lines = [line.strip("= ") for line in (done.stdout + done.stderr).splitlines() if line.startswith("=====")]
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), "")
    if done.returncode == 0 and summary:
        return {"summary": summary}
    last = (done.stderr.strip().splitlines() or [f"it ended with the code {done.returncode} and said nothing"])[-1]
    return {
        "status": "failed",
        "reason": summary or last[:200],
        "errors": lines[:LISTED],
    }
