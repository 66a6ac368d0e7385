#!/usr/bin/env python3
"""Write model_zoo.md: parameters, multiply-accumulates, accuracy, throughput and memory of every model.

Everything in it comes from the files in results/, which tools/flops.py, tools/throughput.py and tools/compare_runs.py
write, and from the headers of the configs. Nothing is measured here.
"""

import argparse
import sys
from pathlib import Path

from arguments import add_json

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = """examples:
  python tools/model_zoo.py            # writes model_zoo.md
  python tools/model_zoo.py --check    # exit code 2 when it is not what the results say

  python tools/flops.py --out results --img-size 224 384 512 1024 2048 --models metala_vit_nano metala_vit_tiny ...
  python tools/throughput.py --out results/throughput_NAME --models metala_vit_tiny ...
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT, metavar="FOLDER", help="the checkout (default: this one)")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if model_zoo.md is stale")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    from metala_vision.errors import InputError
    from metala_vision.files import write_atomic
    from metala_vision.profiling.zoo import build

    path = args.root / "model_zoo.md"
    text = build(args.root)
    stale = not path.is_file() or path.read_text(encoding="utf-8") != text
    if args.check and stale:
        raise InputError(f"{path} is not what results/ and configs/ say: run tools/model_zoo.py")
    if not args.check:
        write_atomic(path, text.encode())
    return {"path": str(path), "changed": stale}


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
