#!/usr/bin/env python3
"""Put accuracy over image sizes beside time and memory: tables, and two pictures.

Accuracy is what tools/test.py --resolutions has left for runs of one or several seeds; time and memory are those of a
sweep by tools/throughput.py. Prints Markdown tables. With --out it writes OUT.json, OUT.png (top-1 against the size)
and OUT_time.png (top-1 against the time of an image). The last line printed is the result as JSON.
"""

import argparse
import sys
from pathlib import Path

from arguments import add_json

EXAMPLES = """examples:
  python tools/test.py CONFIG work_dirs/ours_s*/last.pth --resolutions 128 160 320 --out work_dirs/ours_sizes
  python tools/throughput.py --models metala_vit_nano vit_tiny_patch16_224:embed_dim=128,depth=6,num_heads=2 \\
      --resolutions 128 160 320 --threads 1 --out work_dirs/speed
  python tools/accuracy_at_sizes.py --accuracy ours work_dirs/ours_sizes/result.json \\
      --accuracy vit work_dirs/vit_sizes/result.json --sweep work_dirs/speed --speed ours metala_vit_nano \\
      --speed vit vit_tiny_patch16_224:embed_dim=128,depth=6,num_heads=2 --trained 160 --out results/sizes
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--accuracy",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "FILE"),
        help="a name and the result.json of its tests; may be given several times",
    )
    parser.add_argument(
        "--speed",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "MODEL"),
        help="one of these names and its model, as the sweep calls it; may be given several times",
    )
    parser.add_argument("--sweep", metavar="FOLDER", help="where tools/throughput.py has left the speeds")
    parser.add_argument("--trained", type=int, metavar="N", help="side of the training's images, for the picture")
    parser.add_argument("--out", metavar="PATH", help="beginning of the names of the files to write")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    from metala_vision.engine.metrics.size_plots import plot_accuracy_against_time, plot_sizes
    from metala_vision.engine.sizes import gather_sizes, render_sizes
    from metala_vision.errors import InputError
    from metala_vision.files import write_json

    for option, names in (
        ("--accuracy", [name for name, *_ in args.accuracy]),
        ("--speed", [n for n, _ in args.speed]),
    ):
        if len(set(names)) < len(names):
            raise InputError(f"{option}: got {', '.join(names)}, expected no name twice")
    if short := [name for name, *files in args.accuracy if not files]:
        raise InputError(f"--accuracy: no file behind the name {short[0]}")
    rows = gather_sizes({name: files for name, *files in args.accuracy}, dict(args.speed), args.sweep)
    print(render_sizes(rows))
    result = {"rows": rows, "trained": args.trained}
    if args.out is not None:
        out = Path(args.out)
        write_json(out.with_name(out.name + ".json"), result)
        plot_sizes(rows, out.with_name(out.name + ".png"), trained=args.trained)
        if any(row["milliseconds"] is not None for row in rows):
            plot_accuracy_against_time(rows, out.with_name(out.name + "_time.png"))
    return result


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
