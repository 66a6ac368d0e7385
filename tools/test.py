#!/usr/bin/env python3
"""Test checkpoints on the test split of a config, at its own resolution or at others.

If no config is named, the one that the run left beside its checkpoint is used. Classes that a checkpoint names in
another order than the test set are matched by name.

Prints a table, and the results as JSON on the last line. Leaves in the out folder result.json, results.csv, and for
each checkpoint and resolution per_class.csv and confusion_matrix.png; with several resolutions also resolutions.png.
A detector also gives predictions.json in COCO's result form, detectors and segmenters a folder of pictures.
"""

import argparse
import sys
from pathlib import Path

from arguments import add_config, add_device, add_json, image_size

CONFIGS = (".py", ".json", ".yaml", ".yml")  # what mmengine reads
EXAMPLES = """examples:
  python tools/test.py configs/digits/metala_vit_digits.py work_dirs/metala_vit_digits/best.pth
  python tools/test.py configs/digits/metala_vit_digits.py work_dirs/metala_vit_digits/best.pth --resolutions 8 12 16
  python tools/test.py work_dirs/metala_vit_digits/best.pth
  python tools/test.py CONFIG work_dirs/*/best.pth --weights raw --out work_dirs/all
  python tools/test.py CONFIG best.pth --img-size 288 --crop-ratio 1.0
  python tools/test.py CONFIG best.pth --resolutions 160 224 320x160
  python tools/test.py CONFIG best.pth model.onnx int8.onnx
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] [config] checkpoint ...",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    parser.add_argument(
        "checkpoints",
        nargs="*",
        help="best.pth or last.pth of runs, state_dicts of the timm model, or classifiers of tools/export.py",
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--img-size", type=image_size, metavar="N", help="test at N x N pixels, or HxW, instead of the config's size"
    )
    sizes.add_argument(
        "--resolutions", type=image_size, nargs="+", metavar="N", help="test at each of these sizes, and draw it"
    )
    parser.add_argument("--crop-ratio", type=float, metavar="R", help="share of the short side that the crop keeps")
    parser.add_argument(
        "--weights", default="auto", metavar="WHICH", help="auto (the moving average where there is one), ema or raw"
    )
    parser.add_argument("--out", help="folder for the results (default: test, beside the first checkpoint)")
    add_device(parser)
    add_json(parser)
    args = parser.parse_args()
    if Path(args.config).suffix in CONFIGS and not args.checkpoints:
        parser.error("the following arguments are required: checkpoints")
    if Path(args.config).suffix not in CONFIGS:
        args.checkpoints, args.config = [args.config, *args.checkpoints], None
    return args


def main(args: argparse.Namespace) -> dict | list[dict]:
    from metala_vision.command_line import check_device
    from metala_vision.engine import join_processes, leave_processes, load_config, set_data_root, set_num_classes
    from metala_vision.engine.cli import say
    from metala_vision.engine.evaluation import evaluate_checkpoints, render
    from metala_vision.engine.run.settings import config_of_run

    config = load_config(args.config or str(config_of_run(args.checkpoints[0])), args.cfg_options)
    if args.data_root is not None:
        set_data_root(config, args.data_root)
    if args.num_classes is not None:
        set_num_classes(config, args.num_classes)
    config.device = check_device(args.device)
    join_processes(config, args.launcher)
    resolutions = args.resolutions or [args.img_size]
    results = evaluate_checkpoints(
        config, args.checkpoints, args.out, resolutions, args.crop_ratio, args.weights, config.device
    )
    say(render(results))
    leave_processes()
    return results if len(results) > 1 else results[0]


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import keep_freed_memory, run_tool

    keep_freed_memory()
    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
