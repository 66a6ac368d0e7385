#!/usr/bin/env python3
"""Measure images per second and core of the data pipelines, beside torchvision's v2 transforms on the same files.

Both read each file, decode it with Pillow, and crop and augment it to a uint8 tensor, in one thread, in turn; the
median of the rounds is reported with its spread. The last line printed is the result as JSON.
"""

import argparse
import sys

from arguments import add_json

EXAMPLES = """examples:
  python tools/bench_pipeline.py --folder FOLDER/train
  python tools/bench_pipeline.py --folder FOLDER --images 500 --rounds 7 --img-size 384
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", required=True, help="JPEG files, in folders of any depth")
    parser.add_argument("--images", type=int, default=200, metavar="N", help="how many of them (default: 200)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of all pipelines (default: 5)")
    parser.add_argument("--img-size", type=int, default=224, metavar="N", help="side of the result (default: 224)")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    from metala_vision.profiling.pipeline import bench_pipelines, render

    result = bench_pipelines(args.folder, args.images, args.rounds, args.img_size)
    print(render(result))
    return result


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
