#!/usr/bin/env python3
"""Show what the token mixers of models look at, how far they remember, and what a token's feature sees.

Linear attention has an attention map too: it is implicit. maps.png draws its rows for chosen queries over the first
picture, block by block, for several models under each other; red weights add, blue ones take away. memory.png draws
after how many tokens the decay of each head has halved a memory. field.png draws how much the last feature of the first
query changes with each pixel, averaged over all pictures. A model is a name of timm's (with random weights) or the
checkpoint of a run.
"""

import argparse
import sys
from pathlib import Path

from arguments import add_imports, add_json, image_size

EXAMPLES = """examples:
  python tools/attention_map.py work_dirs/metala_vit_nano_160_imagenette_30e/last.pth --image photo.jpg
  python tools/attention_map.py RUN/last.pth OTHER_RUN/last.pth --image *.jpg --block 0 5 --query 0.5,0.5 0.2,0.8
  python tools/attention_map.py metala_vit_tiny metala_vit_tiny:mixer=softmax --image photo.jpg --img-size 480x640
"""


def place(text: str) -> tuple[float, float]:
    try:
        row, col = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected two shares such as 0.5,0.5") from None
    return row, col


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="names of timm's, or checkpoints of tools/train.py")
    parser.add_argument("--image", nargs="+", required=True, metavar="FILE", help="pictures; maps are of the first")
    parser.add_argument("--img-size", type=image_size, metavar="SIZE", help="side, or HEIGHTxWIDTH (default: trained)")
    parser.add_argument("--block", nargs="+", type=int, metavar="N", help="(default: first, middle and last)")
    parser.add_argument("--head", type=int, metavar="N", help="draw this head (default: the mean over the heads)")
    parser.add_argument(
        "--query",
        nargs="+",
        type=place,
        default=[(0.5, 0.5), (0.25, 0.25)],
        metavar="Y,X",
        help="places as shares of height and width (default: 0.5,0.5 0.25,0.25)",
    )
    parser.add_argument("--out", default="work_dirs/attention", metavar="FOLDER", help="(default: work_dirs/attention)")
    add_imports(parser)
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    import metala_vision  # noqa: F401  (registers the models)
    from metala_vision.command_line import import_modules
    from metala_vision.data.base import UnreadableImageError
    from metala_vision.data.image_folder import read_image
    from metala_vision.errors import InputError
    from metala_vision.files import write_json
    from metala_vision.profiling.attention.plots import plot_fields, plot_maps, plot_memory
    from metala_vision.profiling.attention.report import examine, load, prepared, render, summary
    from metala_vision.profiling.environment import check_pictures

    check_pictures()
    import_modules(args.imports)
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file, expected a folder")
    shown = [load(text, args.img_size) for text in args.models]
    all_findings, seen = [], []
    for one in shown:
        try:
            pictures = [read_image(path, len(one.mean)) for path in args.image]
        except UnreadableImageError as error:
            raise InputError(f"--image: {error}") from error
        found = examine(one, pictures, args.block, args.query)
        heads = found.maps[0].rows.shape[1]
        if args.head is not None and not -heads <= args.head < heads:
            raise InputError(f"--head: got {args.head}, expected {-heads} to {heads - 1}: {one.name} has {heads} heads")
        all_findings.append(found)
        seen.append(prepared(pictures[0], one.size))
    files = {"maps": str(out / "maps.png"), "field": str(out / "field.png")}
    plot_maps(all_findings, seen, args.query, args.head, files["maps"])
    plot_fields(all_findings, args.query[0], files["field"])
    if any(found.half_lives for found in all_findings):
        files["memory"] = str(out / "memory.png")
        plot_memory(all_findings, files["memory"])
    files["numbers"] = str(out / "attention.json")
    models = [summary(found) for found in all_findings]
    write_json(files["numbers"], models)
    print(render(all_findings))
    print(f"written: {', '.join(files.values())}")
    return {"models": models, "files": files}


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
