#!/usr/bin/env python3
"""Draw a batch of a config as the model sees it: cropped, augmented, mixed, with its labels.

Writes one PNG. The last line printed is the result as JSON.
"""

import argparse
import sys
import tempfile

from arguments import add_config, add_json

EXAMPLES = """examples:
  python tools/browse_dataset.py configs/digits/metala_vit_digits.py
  python tools/browse_dataset.py configs/imagenet/metala_vit_tiny_224_imagenet_300e_deit.py --data-root FOLDER \\
      --images 48 --out batch.png
  python tools/browse_dataset.py CONFIG --split val
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser)
    parser.add_argument("--split", default="train", help="train, val or test (default: train)")
    parser.add_argument("--images", type=int, default=32, metavar="N", help="how many, at most (default: 32)")
    parser.add_argument("--epoch", type=int, default=0, metavar="N", help="whose order and augmentation (default: 0)")
    parser.add_argument("--out", default="batch.png", help="the picture (default: batch.png)")
    parser.add_argument("--seed", type=int, help="random seed (default: the config's)")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    from metala_vision.engine import apply_train_options, load_config, set_data_root, set_num_classes
    from metala_vision.engine.browse import browse

    config = load_config(args.config, args.cfg_options)
    if args.data_root is not None:
        set_data_root(config, args.data_root)
    if args.num_classes is not None:
        set_num_classes(config, args.num_classes)
    with tempfile.TemporaryDirectory() as folder:
        apply_train_options(config, work_dir=folder, seed=args.seed)
        config.visualizer = None
        config.model.pop("init_from", None)  # weights are not used
        config.pop("load_from", None)
        config.model.pop("distillation", None)
        return browse(config, args.split, args.out, args.images, args.epoch)


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
