#!/usr/bin/env python3
"""Measure the three conditions of the MetaLA paper for token mixers (arXiv 2411.10741, section 4).

Dynamic memory: whether the decay depends on the data. Static approximation: how close the map of one head comes to
random softmax maps when everything that the mixer computes from its input is free; the relative error in Frobenius
norm, for maps of a sequence (lower triangular) and of a grid. Least parameters: of the mixer, over its channels
squared. Softmax attention shows what the fit itself leaves over.
"""

import argparse
import sys
from pathlib import Path

from arguments import add_imports, add_json, check_out

EXAMPLES = """examples:
  python tools/mixer_conditions.py                                # all mixers, some minutes
  python tools/mixer_conditions.py metala gla --key-dim 8 --steps 2000
  python tools/mixer_conditions.py mine --import my_mixers        # a mixer of your own, registered by my_mixers.py
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mixers", nargs="*", metavar="MIXER", help="names (default: all)")
    add_imports(parser)
    parser.add_argument("--key-dim", type=int, default=16, metavar="K", help="key channels (default: 16)")
    parser.add_argument("--side", type=int, default=8, metavar="N", help="of the grid of tokens (default: 8)")
    parser.add_argument("--maps", type=int, default=8, metavar="N", help="random maps (default: 8)")
    parser.add_argument("--steps", type=int, default=800, metavar="N", help="of the fit (default: 800)")
    parser.add_argument("--sharpness", type=float, default=2.0, metavar="X", help="factor on the logits (default: 2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of maps and fits (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the rows there, as JSON")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    from metala_vision.command_line import import_modules
    from metala_vision.files import write_json
    from metala_vision.layers.mixers import MIXERS
    from metala_vision.profiling.attention.conditions import Task, conditions, render
    from metala_vision.profiling.environment import environment

    import_modules(args.imports)
    if args.out:
        check_out(args.out)
    task = Task(args.key_dim, args.side, args.maps, args.steps, args.sharpness, seed=args.seed)
    rows = conditions(args.mixers or list(MIXERS), task)
    print(render(rows))
    report = {"task": task._asdict(), "environment": environment(), "rows": rows}
    if args.out:
        write_json(args.out, report)
    return report


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
