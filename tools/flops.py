#!/usr/bin/env python3
"""Count parameters, multiply-accumulates (MACs) and activations of models, with nothing left out.

fvcore traces the model. Every operator that costs something has a count: fvcore's own, one for fused softmax attention,
which fvcore leaves out, and ours for our operators. A model with an operator that has no count is an error and gives no
row, unless --allow names the operator. The table gives the total, its parts (token mixers, channel mixers, the rest),
and the total with scans counted in chunks instead of by their recurrence. It gives two more counts: torch's
FlopCounterMode counts the products (with our counts for our operators), and a formula derived by hand counts
everything, for the architectures that have one. Where the counts differ, the table says so.
"""

import argparse
import sys
from pathlib import Path

from arguments import add_json

EXAMPLES = """examples:
  python tools/flops.py --models metala_vit_tiny deit_tiny_patch16_224
  python tools/flops.py --models metala_vit_tiny deit_tiny_patch16_224 --img-size 224 512 1024 --out work_dirs/flops
  python tools/flops.py --models metala_vit_small --img-size 480x640 --depth 3
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["metala_vit_tiny", "deit_tiny_patch16_224"], metavar="NAME")
    parser.add_argument("--img-size", nargs="+", default=["224"], metavar="SIDE", help="or HEIGHTxWIDTH (default: 224)")
    parser.add_argument("--depth", type=int, default=0, help="also print every module down to this depth")
    parser.add_argument("--allow", nargs="+", default=[], metavar="OPERATOR", help="operators that may count nothing")
    parser.add_argument("--out", metavar="FOLDER", help="write flops.json, flops.csv and, of several sizes, flops.png")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    import metala_vision  # noqa: F401  (registers the models)
    from metala_vision.errors import InputError
    from metala_vision.profiling.environment import check_pictures
    from metala_vision.profiling.macs.report import count_models, parse_size, render, save

    if args.depth < 0:
        raise InputError(f"--depth: got {args.depth}, expected at least 0")
    if args.out and Path(args.out).exists() and not Path(args.out).is_dir():
        raise InputError(f"--out: {args.out} is a file, expected a folder")
    if args.out:
        check_pictures()
    report = count_models(args.models, [parse_size(text) for text in args.img_size], args.allow, args.depth)
    print(render(report, args.depth))
    if args.out and report["rows"]:
        report["files"] = save(report, args.out)
        print(f"written: {', '.join(report['files'].values())}")
    if report["failures"]:
        raise InputError("; ".join(f"{f['model']} at {f['size']}: {f['reason']}" for f in report["failures"]))
    return report


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
