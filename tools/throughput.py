#!/usr/bin/env python3
"""Measure whole models over resolutions: speed, latency and peak memory of inference and training.

Every cell is first run in a process of its own, which gives its peak memory (of the GPU, or the resident set of that
process) and halves the batch as long as the memory is too small. Then all models of a cell take turns, round by round,
in one process. A cell whose step takes more than a quarter of --cell-seconds is timed alone, by one step, and marked
so; a cell that fails becomes a row that says why. Every cell is written to --out as soon as it is done: after an
interruption, or with more models or resolutions, the same command measures only what is missing.

Softmax models run the attention kernel that PyTorch chooses. --sdpa forces one by name; math writes the attention map
out, as in most comparisons. The column `attention` of every row names the kernel that ran.
bfloat16 and float16 are by autocast; a training step is forward, backward and AdamW's. Any timm model works.

With --runtime models also run compiled by PyTorch, or as exported files in onnxruntime and OpenVINO. Then each takes
its turns in a process of its own, while the others sleep, as in tools/bench_model.py.
"""

import argparse
import sys

from arguments import add_json

EXAMPLES = """examples:
  python tools/throughput.py --models metala_vit_tiny deit_tiny_patch16_224 --resolutions 224 512 1024
  python tools/throughput.py --models metala_vit_tiny metala_vit_small deit_tiny_patch16_224 deit_small_patch16_224 \\
      --resolutions 224 384 512 768 1024 1536 2048 --mode infer train --dtype float32 bfloat16 --sdpa default math
  python tools/throughput.py --models metala_vit_base --batch 64 --device cuda --compile --minutes 30
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=["metala_vit_tiny", "deit_tiny_patch16_224"],
        metavar="NAME",
        help="timm's names, with arguments as in vit_tiny_patch16_224:embed_dim=128,depth=6 if a model has any",
    )
    parser.add_argument("--resolutions", nargs="+", type=int, default=[224, 512, 1024], metavar="PIXELS")
    parser.add_argument("--mode", nargs="+", choices=("infer", "train"), default=["infer"])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16", "float16"), default=["float32"])
    parser.add_argument("--batch", default="auto", help="images a step; auto: 8 of 224 pixels or as much area, GPU 256")
    parser.add_argument(
        "--sdpa",
        nargs="+",
        default=["default"],
        metavar="NAME",
        help="of softmax models: default, cudnn, flash, efficient, math",
    )
    parser.add_argument(
        "--runtime",
        nargs="+",
        default=["eager"],
        metavar="NAME",
        help="out of eager, compile, onnxruntime, openvino, on a CPU (default: eager alone)",
    )
    parser.add_argument("--files", metavar="FOLDER", help="keeps exported files for the next run (default: none does)")
    parser.add_argument("--baseline", metavar="NAME", help="what ratios are against (default: the last of --models)")
    parser.add_argument("--compile", action="store_true", help="torch.compile every model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    parser.add_argument("--threads", type=int, help="of the processor (default: PyTorch's)")
    parser.add_argument("--rounds", type=int, default=10, help="at most, of a cell (default: 10)")
    parser.add_argument("--cell-seconds", type=float, default=60.0, help="of a cell with three rounds (default: 60)")
    parser.add_argument("--minutes", type=float, help="of the whole run; what is left is for the next one")
    parser.add_argument("--out", default="work_dirs/throughput", metavar="FOLDER", help="where figures and plots go")
    parser.add_argument("--against", metavar="FOLDER", help="say how these medians agree with those of another sweep")
    parser.add_argument("--retry-failed", action="store_true", help="try cells again that failed")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    from metala_vision.profiling.sweep.throughput import Request, measure

    return measure(
        Request(
            models=args.models,
            resolutions=args.resolutions,
            modes=args.mode,
            dtypes=args.dtype,
            batch=args.batch,
            sdpa=args.sdpa,
            baseline=args.baseline,
            compiled=args.compile,
            device=args.device,
            threads=args.threads,
            rounds=args.rounds,
            cell_seconds=args.cell_seconds,
            minutes=args.minutes,
            runtimes=args.runtime,
            files=args.files,
        ),
        folder=args.out,
        retry_failed=args.retry_failed,
        against=args.against,
        show=print,
    )


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
