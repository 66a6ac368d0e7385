"""Starts the parts of a report one after the other, ends what hangs, and writes the report after each of them."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import torch

import metala_vision
from metala_vision.errors import InputError
from metala_vision.files import owned, to_json, write_atomic, write_json
from metala_vision.profiling.environment import environment

from . import rows
from .parts import KEPT, PARTS, Part
from .summary import render

ROOT = Path(metala_vision.__file__).resolve().parents[1]
FILE = "report.json"
GRACE = 5.0  # seconds that a process has beyond its share, to finish a cell
RESERVE = 10.0  # seconds of the whole that no part gets
BESIDE = max(1, min(4, (os.cpu_count() or 1) // 4))  # processes that run beside a part
LOG_BYTES = 400_000  # kept of each part's log: its end
# What all cells of a report share.
SAME = ("device", "gpu", "torch", "timm", "cuda", "cudnn", "driver", "triton", "sources", "report")
# Cells that another run of the same report tries again.
REPEATED = ("failed", "died", "too slow", "not reached", "incomplete")


class Options(NamedTuple):
    """What to report, and for how long."""

    minutes: float = 9.0
    out: str | Path | None = None  # None: results/gpu_CARD
    parts: tuple[str, ...] = ()  # names; empty: all that the folder has not finished
    rehearse: bool = False
    again: bool = False  # replace a report of other versions or sources


def report(options: Options, show: Callable[[str], None] = lambda text: None, known: tuple[Part, ...] = PARTS) -> dict:
    """Runs the parts, and writes report.json, report.txt and log.txt into the folder after each of them.

    A report of the same card, versions and sources in the folder is continued: what was measured stays, what failed or
    was not reached is tried again. Parts that `options` names are measured anew.

    Args:
        options: what to report.
        show: gets a line after each part, and the table at the end.
        known: the parts there are.

    Returns:
        The report: `environment`, `parts` (name, title, status, seconds, cells), `minutes`, `table`, `folder`.

    Raises:
        InputError: no GPU and no rehearsal, an unknown part, a folder with a report of other versions or sources.
    """
    _check(options, known)
    device = "cpu" if options.rehearse else "cuda"
    folder = Path(options.out) if options.out else ROOT / "results" / f"gpu_{_card(device)}"
    with owned(folder, "--out", "another report is being written"), tempfile.TemporaryDirectory() as scratch:
        content = _former(folder / FILE, environment(device) | {"report": _digest()}, options)
        chosen = [part for part in known if not options.parts or part.name in options.parts]
        end = time.monotonic() + 60 * options.minutes - RESERVE
        for number, part in enumerate(chosen):
            later = sum(other.seconds for other in chosen[number:])
            share = max(0.0, (end - time.monotonic()) * part.seconds / later)
            former = {} if options.parts else content["parts"].get(part.name, {})
            running = _Running(part, Path(scratch), former)
            try:
                running.run(share, device, options.rehearse, _ceilings(content))
            except BaseException:  # the report is ended in its midst: what it has is kept, and what was not made anew
                content["parts"][part.name] = _over(content["parts"].get(part.name), running.result())
                _write(folder, content, part, running.text())
                raise
            result = content["parts"][part.name] = running.result()
            _write(folder, content, part, running.text())
            counts = ", ".join(f"{count} {status}" for status, count in _count(result["cells"]).items())
            left = max(0.0, end - time.monotonic())
            show(f"{part.title}: {counts or result['status']} in {result['seconds']:.0f} s; {left:.0f} s are left")
    content["table"] = render(content)
    show(f"written: {folder / FILE}, report.txt, log.txt")
    show(content["table"])
    return content | {"folder": str(folder)}


def _check(options: Options, known: tuple[Part, ...]) -> None:
    names = [part.name for part in known]
    if unknown := [name for name in options.parts if name not in names]:
        raise InputError(f"--parts: got {', '.join(unknown)}, expected out of {', '.join(names)}")
    if not options.minutes > 0:
        raise InputError(f"--minutes: got {options.minutes}, expected more than 0")
    if not options.rehearse and not torch.cuda.is_available():
        raise InputError("torch finds no CUDA GPU here; --rehearse runs every part's code on the CPU, in tiny sizes")


def _card(device: str) -> str:
    name = "rehearsal" if device == "cpu" else torch.cuda.get_device_name()
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _former(path: Path, found: dict, options: Options) -> dict:
    """The report that a folder holds, or a new one."""
    new = {"environment": found, "rehearsal": options.rehearse, "minutes": options.minutes, "parts": {}}
    if not path.exists():
        return new
    try:
        content = json.loads(path.read_text())
        had = content["environment"]
        content["parts"] = {name: dict(part) for name, part in content["parts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--out: {path} is no report: {error!r}; name another folder") from error
    different = [name for name in SAME if had.get(name) != found.get(name)]
    if not different:
        return content
    if options.again:
        return new
    listed = ", ".join(f"{name} {had.get(name)} (now {found.get(name)})" for name in different)
    raise InputError(
        f"--out: {path.parent} holds a report of something else: {listed}; name another folder, or add --again"
    )


def _ceilings(content: dict) -> dict:
    cells = content["parts"].get("environment", {}).get("cells", [])
    return {key: value for cell in cells for key, value in cell.items() if key.endswith("_s")}


class _Running:
    """One part: its processes, and what they have found so far.

    Args:
        part: which one.
        scratch: folder for rows and logs.
        former: the part's result in a report that goes on; cells that need not be repeated are kept.
    """

    def __init__(self, part: Part, scratch: Path, former: dict):
        self.part, self.scratch = part, scratch
        self.rows, self.log = scratch / f"{part.name}.jsonl", scratch / f"{part.name}.log"
        self.kept = [cell for cell in former.get("cells", []) if cell["status"] not in REPEATED]
        self.start, self.reason = time.monotonic(), ""
        for cell in self.kept:
            rows.append(self.rows, {"kept": cell["cell"]})
        write_json(scratch / KEPT, {cell["cell"]: cell for cell in self.kept})

    def run(self, seconds: float, device: str, rehearse: bool, ceilings: dict) -> None:
        """Runs its cells. A process that dies is followed by another for the cells that are left."""
        command = [sys.executable, "-m", f"{__package__}.worker", self.part.source, "--rows", str(self.rows)]
        command += ["--device", device, "--scratch", str(self.scratch), "--ceilings", to_json(ceilings)]
        command += ["--rehearse"] * rehearse
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        if rehearse:
            environment["TRITON_INTERPRET"] = "1" if self.part.interpreted else "0"
        with _beside(self.part, command, environment, seconds):
            while True:
                left = seconds - (time.monotonic() - self.start)
                before = len(rows.values(self.rows, "begun"))
                code = _run([*command, "--seconds", f"{left:.1f}"], environment, self.log, left + GRACE)
                self.reason = _reason(code, self.log)
                status = "too slow" if code is None else "died"
                for key in _without_row(self.rows, "begun"):
                    rows.append(self.rows, {"cell": key, "status": status, "reason": self.reason})
                if code in (0, None) or left < GRACE or len(rows.values(self.rows, "begun")) == before:
                    break

    def result(self) -> dict:
        """The row of the part."""
        found = rows.read(self.rows) if self.rows.exists() else []
        cells = self.kept + [row for row in found if "cell" in row]
        cells += [{"cell": key, "status": "not reached"} for key in _without_row(self.rows, "planned")]
        good = all(cell["status"] in ("ok", "not here") for cell in cells)
        status = "failed" if not cells else "ok" if good else "incomplete"
        seconds = round(time.monotonic() - self.start, 1)
        result = {"title": self.part.title, "status": status, "seconds": seconds, "cells": cells}
        return result | ({"reason": self.reason} if status != "ok" and self.reason else {})

    def text(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-LOG_BYTES:] if self.log.exists() else ""


def _over(old: dict | None, new: dict) -> dict:
    """The result of a part that was ended, with the cells of the former one that it has not reached."""
    reached = [cell for cell in new["cells"] if cell["status"] != "not reached"]
    names = {cell["cell"] for cell in reached}
    former = [cell for cell in (old or {}).get("cells", []) if cell["cell"] not in names]
    names |= {cell["cell"] for cell in former}
    missing = [cell for cell in new["cells"] if cell["cell"] not in names]
    return {**new, "status": "incomplete", "cells": [*reached, *former, *missing]}


def _digest() -> str:
    """Of the sources of the report itself and of the tests that it runs."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, ROOT / "tests" / "gpu"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def _beside(part: Part, command: list[str], environment: dict, seconds: float) -> Iterator[None]:
    """A context in which processes run `part.beside`; at its end they are ended, whatever they have not done."""
    processes = []
    # By default a process compiles with as many others as there are processors
    environment = {**environment, "TORCHINDUCTOR_COMPILE_THREADS": "2", "TRITON_INTERPRET": "0"}
    try:
        for number in range(BESIDE if part.beside else 0):
            own = [part.beside if word == part.source else word for word in command]
            own[own.index("--rows") + 1] += f".beside{number}"
            own += ["--share", to_json([number, BESIDE]), "--seconds", f"{seconds:.1f}"]
            processes.append(_start(own, environment, subprocess.DEVNULL))
        yield
    finally:
        for process in processes:
            _end(process)


def _without_row(path: Path, name: str) -> list[str]:
    """Cells that were "begun" or "planned" and have no row, neither here nor from an earlier run."""
    keys = [key for value in rows.values(path, name) for key in ([value] if isinstance(value, str) else value)]
    done = {*rows.values(path, "cell"), *rows.values(path, "kept")}
    return [key for key in dict.fromkeys(keys) if key not in done]


def _run(command: list[str], environment: dict, log: Path, seconds: float) -> int | None:
    """The exit code of a command, or None if it took longer than `seconds`; all that it started is ended too."""
    with open(log, "ab") as file:
        process = _start(command, environment, file)
        try:
            return process.wait(timeout=max(seconds, GRACE))
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _start(command: list[str], environment: dict, output: IO | int) -> subprocess.Popen:
    """A process in a group of its own, to which the processes that it starts belong too."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    )


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _reason(code: int | None, log: Path) -> str:
    if code is None:
        return "it was ended when its time was over"
    if code < 0:
        return f"the process died of signal {-code} ({signal.strsignal(-code)})"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return f"exit code {code}: {lines[-1][:200]}" if code and lines else ""


def _count(cells: list[dict]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for cell in cells:
        counts[cell["status"]] = counts.get(cell["status"], 0) + 1
    return counts


def _write(folder: Path, content: dict, part: Part, log: str) -> None:
    write_json(folder / FILE, content)
    write_atomic(folder / "report.txt", (render(content) + "\n").encode())
    path = folder / "log.txt"
    former = path.read_text(errors="replace") if path.exists() else ""
    sections = dict(re.findall(r"^=== (\w+)\n(.*?)(?=^=== |\Z)", former, re.MULTILINE | re.DOTALL))
    sections[part.name] = log if log.endswith("\n") else log + "\n"
    write_atomic(path, "".join(f"=== {name}\n{text}" for name, text in sections.items()).encode())
