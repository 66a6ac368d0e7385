#!/usr/bin/env python3
"""Make a pretrained softmax ViT linear in the number of patches, in stages, on a folder of images without labels.

It begins with the teacher's weights and with states from the keys of a few images. In the stage "blocks" every linear
attention learns what the teacher's returns, in the stage "features" all weights learn the teacher's final tokens. With
labels there is a third stage, "task", which is ordinary training. After each it prints the cosine of the features to
the teacher's on images that were held out, and with --labels how well neighbours and a linear probe tell the classes by
the features of both. Images through both are timed side by side. A run that was ended goes on with the same command.
The last line printed is the result as JSON; its "model" is the file of the last stage, which tools/publish.py takes.
"""

import argparse
import sys
from pathlib import Path

from arguments import add_json

CONFIG = "configs/linearize/vit_small_patch14_dinov2_classes_photographs_1e_blocks.py"
TASK_CONFIG = "configs/linearize/vit_small_patch14_dinov2_classes_imagefolder_5e_task.py"
EXAMPLES = """examples:
  python tools/linearize.py --teacher vit_small_patch14_dinov2 --data-root PHOTOS --out work_dirs/linear_dinov2
  python tools/linearize.py --teacher vit_small_patch16_224 --checkpoint teacher.pth --data-root PHOTOS \\
      --labels FOLDER --mixer metala --keep-softmax 8 9 10 11 --epochs 3 10 --sizes 224 448 --out work_dirs/linear
  python tools/linearize.py --teacher vit_small_patch14_dinov2 --data-root PHOTOS --labels FOLDER \\
      --stages blocks features task --out work_dirs/linear_and_trained
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True, metavar="NAME", help="a VisionTransformer of timm")
    parser.add_argument("--checkpoint", metavar="FILE", help="its weights (default: timm's pretrained ones)")
    parser.add_argument("--data-root", required=True, metavar="FOLDER", help="images, at any depth")
    parser.add_argument("--labels", metavar="FOLDER", help="images with a folder per class, for neighbours and a probe")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the runs of the stages are kept")
    parser.add_argument("--mixer", default="classes", help="classes, kernel or metala (default: classes)")
    parser.add_argument("--states", type=int, default=64, metavar="N", help="of each head (default: 64)")
    parser.add_argument(
        "--keep-softmax", nargs="*", type=int, default=[], metavar="N", help="blocks to leave as they are"
    )
    parser.add_argument(
        "--stages",
        nargs="+",
        default=["blocks", "features"],
        metavar="STAGE",
        help="blocks, features and task, in this order (default: the first two)",
    )
    parser.add_argument("--epochs", nargs="+", type=int, metavar="N", help="of each stage (default: 1, 1 and 5)")
    parser.add_argument("--lr", nargs="+", type=float, help="of each stage (default: 1e-3, 1e-4 and 1e-4)")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="sides at which a linear probe on the features of both is drawn against the time of an image",
    )
    parser.add_argument(
        "--timed",
        nargs="*",
        type=int,
        default=[224, 448, 896],
        metavar="N",
        help="sides at which both are timed (default: 224 448 896)",
    )
    parser.add_argument("--img-size", type=int, default=224, metavar="N", help="side of the images (default: 224)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="images of a step (default: 16)")
    parser.add_argument("--config", default=CONFIG, help=f"of the first stages (default: {CONFIG})")
    parser.add_argument("--task-config", default=TASK_CONFIG, help=f"of the third (default: {TASK_CONFIG})")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override parts of the config"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    parser.add_argument("--seed", type=int, help="random seed (default: the config's)")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    import timm

    import metala_vision  # noqa: F401  (registers the models)
    from metala_vision.engine.linearizing import linearize_in_stages
    from metala_vision.engine.run.config import parse_options

    seen = timm.get_pretrained_cfg(args.teacher) if timm.is_model(args.teacher) else None
    options = {
        **({} if seen is None else {"model.mean": tuple(seen.mean), "model.std": tuple(seen.std)}),
        "model.backbone.teacher": args.teacher,
        "model.backbone.mixer": args.mixer,
        "model.backbone.states": args.states,
        "model.backbone.keep_softmax": tuple(args.keep_softmax),
        "model.teacher.pretrained": args.checkpoint is None,
        "model.teacher.checkpoint_path": args.checkpoint,
        **{f"{part}_dataloader.dataset.transform.img_size": args.img_size for part in ("train", "val", "test")},
        **{f"{part}_dataloader.batch_size": args.batch for part in ("train", "val", "test")},
        **parse_options(args.cfg_options),
    }
    found = linearize_in_stages(
        (_placed(args.config, CONFIG), _placed(args.task_config, TASK_CONFIG)),
        options,
        args.data_root,
        args.out,
        args.stages,
        args.epochs,
        args.lr,
        args.labels,
        args.sizes,
        args.timed,
        args.device,
        args.seed,
    )
    return {**found, "out": args.out}


def _placed(config: str, default: str) -> str:
    """The default config is found from any folder."""
    if config == default and not Path(config).is_file():
        return str(Path(__file__).resolve().parent.parent / default)
    return config


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import keep_freed_memory, run_tool

    keep_freed_memory()
    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
