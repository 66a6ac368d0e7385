#!/usr/bin/env python3
"""Put runs of several seeds together: mean and deviation of their test accuracy, time per epoch and per step.

Prints a Markdown table. The last line printed is the result as JSON, which --out also writes to a file.
"""

import argparse
import sys
from pathlib import Path

from arguments import add_json, check_out

EXAMPLES = """examples:
  python tools/compare_runs.py --run ours work_dirs/metala_seed* --run vit work_dirs/vit_seed*
  python tools/compare_runs.py --run alternate runs/alternate_* --run cross runs/cross_* --out results/scans.json
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "FOLDER"),
        help="a name and the work_dirs of its runs, one for each seed; may be given several times",
    )
    parser.add_argument("--out", help="a JSON file for the result")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    from metala_vision.engine.comparison import gather, render
    from metala_vision.errors import InputError
    from metala_vision.files import write_json

    if args.out is not None:
        check_out(args.out)
    names = [name for name, *_ in args.run]
    if len(set(names)) < len(names):
        raise InputError(f"--run: got {', '.join(names)}, expected no name twice")
    groups = {name: [Path(folder) for folder in folders] for name, *folders in args.run}
    rows = gather(groups)
    print(render(rows))
    result = {"rows": rows}
    if args.out is not None:
        write_json(args.out, result)
    return result


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
