#!/usr/bin/env python3
"""Time a detector on several backbones, or the detectors of several configs, side by side, and measure their memory.

Every round runs each detector once; the peak of its resident memory is measured in a process of its own. The table
shows medians, the spread (distance of the quartiles over the median) and how many times faster each detector is than
the first one, as the median over the rounds. Weights are random, so that all detectors work on the same numbers of
proposals and boxes. CPU only.
"""

import argparse
import sys
from pathlib import Path

from arguments import add_json, check_out

EXAMPLES = """examples:
  python tools/bench_detector.py --backbones deit_tiny_patch16_224 metala_vit_tiny --sizes 1333x800 2048x1024
  python tools/bench_detector.py --kind retinanet --sizes 640x480 --mode infer train --threads 2 --json
  python tools/bench_detector.py --configs configs/bccd/*.py --sizes 320x240 640x480 --mode train --batch 4
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default="faster_rcnn", help="faster_rcnn (default), mask_rcnn, retinanet or fcos")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--backbones", nargs="+", default=["deit_tiny_patch16_224", "metala_vit_tiny"], metavar="NAME", help="of timm"
    )
    what.add_argument(
        "--configs", nargs="+", metavar="FILE", help="whose ImageDetectors are timed; images have the size of --sizes"
    )
    parser.add_argument("--sizes", nargs="+", default=["1333x800", "2048x1024"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--mode", nargs="+", default=["infer"], metavar="MODE", help="infer, train or both")
    parser.add_argument("--batch", type=int, default=1, help="images (default: 1)")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--rounds", type=int, default=5, help="at most, of each size and mode (default: 5)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of each detector; three rounds are run in any case"
    )
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON there too")
    add_json(parser)
    return parser.parse_args()


def from_config(path: str) -> dict:
    """The model of a config, as arguments of `DetectorCandidate`."""
    from metala_vision.engine import load_config
    from metala_vision.errors import InputError

    model = load_config(path).model.to_dict()
    if model.pop("type") != "ImageDetector":
        raise InputError(f"--configs: {path} has no ImageDetector")
    of_training = ("mean", "std", "init_from", "grad_checkpointing", "compile", "data_preprocessor")
    options = {key: value for key, value in model.items() if key not in of_training}
    found = {key: options.pop(key) for key in ("kind", "num_classes")}
    arguments = dict(options.pop("backbone"))
    name = arguments.pop("model_name")
    return dict(found, name=Path(path).stem, backbone=name, backbone_arguments=arguments, options=options)


def main(args: argparse.Namespace) -> dict:
    from metala_vision.errors import InputError
    from metala_vision.files import write_json
    from metala_vision.profiling.detectors import DetectorCandidate, DetectorCell, bench_detectors, render

    if args.out:
        check_out(args.out)
    if args.configs:
        candidates = [DetectorCandidate(**from_config(path)) for path in args.configs]
    else:
        candidates = [DetectorCandidate(name, args.kind, name) for name in args.backbones]
    cells = []
    for text in args.sizes:
        width, _, height = text.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise InputError(f"--sizes: got {text!r}, expected WIDTHxHEIGHT such as 1333x800")
        cells += [DetectorCell(int(height), int(width), mode, args.batch) for mode in args.mode]
    report = bench_detectors(
        candidates,
        cells,
        args.threads,
        args.rounds,
        args.seconds,
        show=lambda text: print(text, file=sys.stderr),
    )
    print(render(report))
    if args.out:
        write_json(args.out, report)
    return report


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
