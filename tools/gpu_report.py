#!/usr/bin/env python3
"""Report on a GPU: whether every kernel is right there, and how fast operators, models and training are.

Runs from a bare checkout with torch, triton, timm, numpy, rich and pytest alone. Each part has a process of its own and
a share of the time. A part that fails or hangs becomes a row that says so, and the others go on. report.json,
report.txt and log.txt are written after every part; the same command continues where the time ran out, and repeats what
failed. The exit code is 0 if every cell is ok, 1 if not, and 2 for input that does not fit.
"""

import argparse
import signal
import sys

from arguments import add_json

EXAMPLES = """examples:
  python tools/gpu_report.py                          nine minutes, into results/gpu_CARD
  python tools/gpu_report.py --minutes 5 --parts correctness operators --out work_dirs/gpu
  python tools/gpu_report.py --rehearse --out work_dirs/rehearsal     every part's code on a CPU, in tiny sizes
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole report (default: 9)")
    parser.add_argument("--out", metavar="FOLDER", help="where it is written (default: results/gpu_CARD)")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="environment, correctness, operators, models, training, hotspots: these anew (default: what is not done)",
    )
    parser.add_argument("--again", action="store_true", help="replace a report of other versions or sources")
    parser.add_argument("--rehearse", action="store_true", help="run every part's code without a GPU, in tiny sizes")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    """Makes the report; returns it without its cells. Those are in report.json, and the table is to be printed last."""
    from metala_vision.profiling.gpu_report import Options, report

    content = report(Options(args.minutes, args.out, tuple(args.parts), args.rehearse, args.again), show=print)
    counts: dict[str, int] = {}
    for part in content["parts"].values():
        for cell in part["cells"]:
            counts[cell["status"]] = counts.get(cell["status"], 0) + 1
    parts = {name: part["status"] for name, part in content["parts"].items()}
    return {"folder": content["folder"], "parts": parts, "cells": counts}


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch takes seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its processes are ended and its rows written
    found: dict = {}
    code = run_tool(lambda: found.setdefault("report", main(arguments)), quiet=arguments.json)
    parts = found.get("report", {}).get("parts", {})
    sys.exit(code or any(status != "ok" for status in parts.values()))
