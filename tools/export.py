#!/usr/bin/env python3
"""Write a model for onnxruntime, OpenVINO, PyTorch and other runtimes, for images of any size in any batch.

The file is run by the runtimes that take it, where they are installed, on images of several sizes and batches if those
are left open, and is not left behind if it gives other numbers than the model. It takes float images [batch, channels,
height, width], normalised as its metadata says (key "metala_vision": mean, std, size, classes). The file of a detector
(retinanet, fcos) gives all boxes with their scores, of which metala_vision.deploy.detections makes detections. The last
line printed is the result as JSON.
"""

import argparse
import sys
from pathlib import Path

from arguments import add_json, image_size

EXAMPLES = """examples:
  python tools/export.py work_dirs/metala_vit_nano_160_imagenette_30e/last.pth --out metala_vit_nano.onnx
  python tools/export.py work_dirs/upernet_metala_vit_nano_p8_128_shapes_6e/best.pth --out upernet.onnx
  python tools/export.py metala_vit_tiny --out metala_vit_tiny.xml --img-size 512x384
  python tools/export.py vit_small_patch16_224.augreg_in1k --pretrained --out vit_small.onnx
  python tools/export.py work_dirs/RUN/best.pth --out small.onnx --int8 --calibration photos
  python tools/export.py metala_vit_tiny --out metala_vit_tiny.pt2 --format aoti
  python tools/export.py metala_vit_tiny --out metala_vit_tiny.onnx --check-sizes 160x224 512x384 1024
  python tools/export.py metala_vit_tiny:in_chans=1 --features-only 5 11 --out features.onnx
"""


# Arguments of metala_vision.export, which no model has.
OPTIONS = {"img_size", "format", "dynamic", "opset", "file", "precision", "calibration", "check_sizes"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a checkpoint of a run, a folder of tools/publish.py, or a model of timm, with arguments after a colon",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="ends in .onnx, in .xml for OpenVINO, or in .pt2")
    parser.add_argument(
        "--format",
        choices=("onnx", "openvino", "torch", "aoti"),
        help="(default: by the ending of the file, torch for .pt2; aoti runs without Python)",
    )
    parser.add_argument(
        "--dynamic",
        nargs="*",
        default=["batch", "size"],
        choices=("batch", "size"),
        help="what is left open (default: batch size)",
    )
    parser.add_argument("--img-size", type=image_size, metavar="N", help="side, or HEIGHTxWIDTH (default: the model's)")
    parser.add_argument("--opset", type=int, default=20, metavar="N", help="of ONNX (default: 20)")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--half", action="store_true", help="weights in float16: half the bytes, computed as before")
    precision.add_argument("--int8", action="store_true", help="products with weights by 8-bit integers")
    parser.add_argument("--calibration", metavar="FOLDER", help="images that the ranges of --int8 are fitted to")
    parser.add_argument(
        "--check-sizes",
        nargs="+",
        type=image_size,
        default=[],
        metavar="N",
        help="of images that the file is tried with, each a side or HEIGHTxWIDTH (default: two beside the model's own)",
    )
    parser.add_argument("--pretrained", action="store_true", help="timm's weights, for a model of timm")
    parser.add_argument(
        "--features-only",
        nargs="*",
        type=int,
        metavar="INDEX",
        help="maps of features instead of logits, of these blocks (default: timm's choice)",
    )
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    import metala_vision
    from metala_vision.errors import InputError
    from metala_vision.profiling.speed.steps import split_arguments

    source, arguments = (args.source, {}) if Path(args.source).exists() else split_arguments(args.source, "source")
    if own := OPTIONS & set(arguments):
        raise InputError(
            f"source: got {sorted(own)[0]} in {args.source!r}, which is an option: --{sorted(own)[0].replace('_', '-')}"
        )
    arguments |= {"pretrained": True} if args.pretrained else {}
    if args.features_only is not None:
        arguments |= {"features_only": True} | ({"out_indices": args.features_only} if args.features_only else {})
    precision = "float16" if args.half else "int8" if args.int8 else "float32"
    settings = dict(opset=args.opset, precision=precision, calibration=args.calibration, check_sizes=args.check_sizes)
    result = metala_vision.export(source, args.out, args.format, args.dynamic, args.img_size, **settings, **arguments)
    print(f"{result['file']}: {result['bytes'] / 1e6:.1f} MB, {', '.join(result['inputs'] + result['outputs'])}")
    for name, differences in result["differences"].items():
        found = ", ".join(f"{shape} {value:.1e}" for shape, value in differences.items())
        print(f"{name}: largest difference over the largest number: {found}")
    return result


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
