#!/usr/bin/env python3
"""Train a classifier, a detector or a segmenter from a config, then test its best weights, or its last ones.

Leaves in the work_dir: the config, last.pth and best.pth, history.json and curves.png, logs with TensorBoard's, and of
the test split result.json and per_class.csv, with confusion_matrix.png or a folder of pictures. The last line printed
is the result as JSON.
"""

import argparse
import contextlib
import sys
import tempfile

from arguments import add_config, add_device, add_json

EXAMPLES = """examples:
  python tools/train.py configs/digits/metala_vit_digits.py
  python tools/train.py configs/digits/metala_vit_digits.py --seed 1 --work-dir work_dirs/digits_seed1
  python tools/train.py configs/digits/metala_vit_digits.py --resume auto
  python tools/train.py configs/shapes/mask_rcnn_metala_vit_nano_p8_128_shapes_6e.py
  python tools/train.py configs/imagefolder/metala_vit_tiny_224_folder_100e.py --data-root FOLDER --num-classes 3 \\
      --dry-run
  python tools/train.py configs/imagenette/metala_vit_nano_160_imagenette_30e.py --multi-scale 128 160 192 224
  torchrun --nproc-per-node 8 tools/train.py configs/imagenet/metala_vit_tiny_224_imagenet_300e_paper.py \\
      --launcher pytorch --amp
  srun --kill-on-bad-exit=1 --ntasks-per-node 8 --gpus-per-node 8 python tools/train.py CONFIG --launcher slurm --amp
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser)
    parser.add_argument("--work-dir", help="where the run is kept (default: work_dirs/<name of the config>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="auto|PATH",
        help="continue from work_dir's last.pth if there is one (auto), or from a checkpoint",
    )
    add_device(parser)
    parser.add_argument(
        "--amp", nargs="?", const="bfloat16", metavar="DTYPE", help="mixed precision: bfloat16 (default) or float16"
    )
    parser.add_argument(
        "--ema", nargs="?", const=0.9999, type=float, metavar="DECAY", help="keep a moving average (default: 0.9999)"
    )
    parser.add_argument(
        "--multi-scale", type=int, nargs="+", metavar="N", help="one of these image sizes for each batch (classifiers)"
    )
    parser.add_argument(
        "--equal-tokens",
        action="store_true",
        help="batches of --multi-scale have more or fewer images, for as many tokens as one of the config's size",
    )
    parser.add_argument(
        "--curriculum", type=int, nargs="+", metavar="N", help="these image sizes, each for a share of the epochs"
    )
    parser.add_argument("--seed", type=int, help="random seed (default: the config's)")
    parser.add_argument("--compile", action="store_true", help="run the model through torch.compile")
    parser.add_argument(
        "--grad-checkpointing", action="store_true", help="recompute activations instead of keeping them: less memory"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, run two batches, print memory, time per epoch and of the whole run, and stop",
    )
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    from metala_vision.engine import (
        VisionRunner,
        apply_train_options,
        held,
        join_processes,
        leave_processes,
        load_config,
        set_data_root,
        set_num_classes,
    )
    from metala_vision.engine.cli import say, write_result
    from metala_vision.engine.dry_run import describe, dry_run

    with contextlib.ExitStack() as stack:
        if args.dry_run:  # a run of which nothing is kept
            args.work_dir = stack.enter_context(tempfile.TemporaryDirectory())
        config = load_config(args.config, args.cfg_options)
        if args.data_root is not None:
            set_data_root(config, args.data_root)
        if args.num_classes is not None:
            set_num_classes(config, args.num_classes)
        apply_train_options(
            config,
            work_dir=args.work_dir,
            resume=args.resume,
            device=args.device,
            amp=args.amp,
            seed=args.seed,
            compile=args.compile,
            grad_checkpointing=args.grad_checkpointing,
            ema=args.ema,
            multi_scale=args.multi_scale,
            curriculum=args.curriculum,
            equal_tokens=args.equal_tokens,
        )
        join_processes(config, args.launcher)
        stack.enter_context(held(config.work_dir))
        if args.dry_run:
            config.visualizer = None
            result = dry_run(VisionRunner.from_cfg(config))
            say(describe(result))
        else:
            runner = VisionRunner.from_cfg(config)
            result = runner.train_and_test()
            write_result(result, runner.work_dir)
    leave_processes()
    return result


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import keep_freed_memory, run_tool

    keep_freed_memory()
    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
