#!/usr/bin/env python3
"""Cut the photographs of scikit-image and scikit-learn into a classification task: which one is a crop from?

Writes OUT/{train,val}/PHOTO/NUMBER.png; training crops come from the left of a photograph, test crops from its right.
"""

import argparse
import sys

from arguments import add_json

EXAMPLES = """examples:
  python tools/photo_crops.py --out data/photo_crops
  python tools/photo_crops.py --out data/photo_crops_96 --size 96 --train 100 --val 30
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="data/photo_crops", help="a new folder (default: data/photo_crops)")
    parser.add_argument("--size", type=int, default=128, metavar="N", help="side of a crop in pixels (default: 128)")
    parser.add_argument(
        "--train", type=int, default=200, metavar="N", help="training crops a photograph (default: 200)"
    )
    parser.add_argument("--val", type=int, default=60, metavar="N", help="test crops a photograph (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the places of the crops (default: 0)")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    from metala_vision.data.photo_crops import library_photos, write_photo_crops

    photos = library_photos()
    counts = write_photo_crops(photos, args.out, args.size, args.train, args.val, seed=args.seed)
    print(f"{counts['train']} training crops and {counts['val']} test crops of {len(photos)} photographs in {args.out}")
    return {"out": args.out, "photographs": len(photos), "size": args.size, **counts}


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: imports take seconds, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
