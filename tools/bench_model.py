#!/usr/bin/env python3
"""Time models side by side, in turn in one process, against the first one and against their matrix products alone.

A cell is a resolution with a batch size. Every round runs each model once, and then its matrix products alone ("floor":
no implementation of the rest can beat it), by the library that the model calls. Where that is not torch.mm, the round
runs the products by torch.mm too ("torch"). The table shows medians, the spread (distance of the quartiles over the
median), how many times faster each model is than the first one, and the shares of its time that the matrix products
alone take, as medians over the rounds. Softmax models run the attention kernel that PyTorch chooses. On a GPU times are
taken between events of the device, and there are no floors, since the products alone would be launched one by one.

With --runtime models are timed as people deploy them too: compiled by PyTorch, or as exported files in onnxruntime and
OpenVINO, on a CPU. Each model runs in a process of its own in each runtime, since threads of one would disturb those of
another. All are built and warmed up first; then they take turns, a turn being as many runs as take 0.3 seconds, while
the others sleep. Lines after the table name the best runtime of each model. What cannot run has a row with the reason.
"""

import argparse
import sys

from arguments import add_json

EXAMPLES = """examples:
  python tools/bench_model.py --models deit_tiny_patch16_224 metala_vit_tiny --cells 224x8 512 1024 2048
  python tools/bench_model.py --models deit_tiny_patch16_224 metala_vit_tiny --cells 224x8 512 --mode train
  python tools/bench_model.py --models metala_vit_small --cells 1024 --dtype float32 bfloat16 --json
  python tools/bench_model.py --models deit_tiny_patch16_224 metala_vit_tiny --cells 224 512 1024 \\
      --runtime eager compile onnxruntime openvino --dtype float32 int8 --threads 2
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["deit_tiny_patch16_224", "metala_vit_tiny"], metavar="NAME")
    parser.add_argument("--cells", nargs="+", default=["224x8", "512", "1024"], metavar="SIZE[xBATCH]")
    parser.add_argument("--mode", choices=("infer", "train"), default="infer", help="train: step of AdamW included")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=("float32", "bfloat16", "int8"),
        default=["float32"],
        help="bfloat16 is by autocast, int8 of exported files alone (default: float32)",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile every model")
    parser.add_argument(
        "--runtime",
        nargs="+",
        default=["eager"],
        metavar="NAME",
        help="out of eager, compile, onnxruntime, openvino (default: eager alone)",
    )
    parser.add_argument("--files", metavar="FOLDER", help="keeps exported files for the next run (default: none does)")
    parser.add_argument("--cuda-graphs", action="store_true", help="with --compile: mode reduce-overhead, on a GPU")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    parser.add_argument("--threads", type=int, default=None, help="default: torch's")
    parser.add_argument("--rounds", type=int, default=15, help="at most, per cell")
    parser.add_argument("--seconds", type=float, default=60.0, help="per cell; three rounds are run in any case")
    parser.add_argument("--no-floor", action="store_true", help="leave out the matrix products")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    from metala_vision.errors import InputError
    from metala_vision.profiling.environment import environment
    from metala_vision.profiling.speed.bench import bench_models, parse_cell, render
    from metala_vision.profiling.speed.bench_runtimes import bench_runtimes, render_best
    from metala_vision.profiling.speed.runtimes import OF_FILES, check_runtimes, version_of
    from metala_vision.profiling.speed.steps import Cell
    from metala_vision.profiling.speed.timing import timed_device

    device = timed_device(args.device)
    runtimes = check_runtimes(args.runtime, [args.mode], device, args.compile)
    sizes = [parse_cell(text) for text in args.cells]
    cells = [Cell(size, batch, dtype, args.mode) for size, batch in sizes for dtype in args.dtype]
    shared = dict(threads=args.threads, rounds=args.rounds, seconds=args.seconds)
    flags = {"compiled": args.compile, "cuda_graphs": args.cuda_graphs}
    report = {"environment": environment(device, args.threads), **flags}
    for option, value in (("--rounds", args.rounds), ("--threads", args.threads)):
        if value is not None and value < 1:
            raise InputError(f"{option}: got {value}, expected at least 1")
    if args.cuda_graphs and runtimes != ["eager"]:
        raise InputError("--cuda-graphs: got it beside --runtime, which runs on a CPU; leave one out")
    if args.files is not None and not set(runtimes) & set(OF_FILES):
        raise InputError(f"--files: got it without a --runtime that runs files: {' or '.join(OF_FILES)}")
    if runtimes == ["eager"] and "int8" in args.dtype:
        raise InputError("--dtype: got int8, which is of exported files alone; add --runtime onnxruntime openvino")
    if runtimes == ["eager"]:
        floor = not args.no_floor and device == "cpu"
        options = dict(floor=floor, device=device, cuda_graphs=args.cuda_graphs, **shared)
        report["rows"] = bench_models(args.models, cells, args.compile, **options)
    else:
        report["environment"] |= {name: version_of(name) for name in runtimes if name in OF_FILES}
        rows, best = bench_runtimes(args.models, cells, runtimes, floor=not args.no_floor, files=args.files, **shared)
        report |= {"rows": rows, "best": best}
    print(render(report))
    if "best" in report:
        print(render_best(report["best"]))
    return report


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
