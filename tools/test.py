#!/usr/bin/env python3
"""Test a checkpoint on the test split of a config.

Prints accuracy, and the result as JSON on the last line; writes result.json and confusion_matrix.png to the out folder.
"""

import argparse
import sys
from pathlib import Path

EXAMPLES = """examples:
  python tools/test.py configs/digits/metala_vit_digits.py work_dirs/metala_vit_digits/best.pth
  python tools/test.py configs/digits/metala_vit_digits.py work_dirs/metala_vit_digits/best.pth --img-size 12
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a config file, see configs/")
    parser.add_argument("checkpoint", help="best.pth or last.pth of a run, or a state_dict of the timm model")
    parser.add_argument("--img-size", type=int, metavar="N", help="test at N x N pixels instead of the config's size")
    parser.add_argument("--out", help="folder for the result (default: beside the checkpoint, in test_<size>)")
    parser.add_argument("--data-root", metavar="FOLDER", help="where the images are (default: the config's)")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="override parts of the config")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    parser.add_argument("--json", action="store_true", help="print nothing but the result on stdout; logs go to stderr")
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    from metala_vision.engine import ClassificationRunner, apply_test_options, load_config, set_data_root
    from metala_vision.engine.cli import write_result

    config = load_config(args.config, args.cfg_options)
    if args.data_root is not None:
        set_data_root(config, args.data_root)
    apply_test_options(config, args.checkpoint, args.out, args.img_size, args.device)

    runner = ClassificationRunner.from_cfg(config)
    result = runner.test_checkpoint(args.checkpoint, args.img_size)
    return write_result({**result, "checkpoint": str(Path(args.checkpoint))}, runner.work_dir)


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.engine.cli import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
