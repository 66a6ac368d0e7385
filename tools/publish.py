#!/usr/bin/env python3
"""Write the weights of a run as timm and the hub take them: safetensors, config.json and a model card.

The folder is loaded by timm.create_model("local-dir:OUT", pretrained=True), and by transformers' TimmWrapper, where
metala_vision has been imported. The card has the data, the recipe, the accuracy at every size that tools/test.py has
left beside the checkpoint, and the licence. Nothing is uploaded. The last line printed is the result as JSON.
"""

import argparse
import sys

from arguments import add_json

EXAMPLES = """examples:
  python tools/publish.py work_dirs/metala_vit_nano_160_imagenette_30e --out weights/metala_vit_nano.imagenette
  python tools/publish.py RUN/last.pth --out FOLDER --name metala_vit_nano.imagenette --license apache-2.0
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run (its best weights, or its last), or a checkpoint")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--name", help="what the card calls the model (default: the name of the run's folder)")
    parser.add_argument("--license", default="unknown", help="of the weights, in the hub's words (default: unknown)")
    parser.add_argument("--weights", default="auto", metavar="WHICH", help="auto (the moving average), ema or raw")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    import metala_vision  # noqa: F401  (registers the models)
    from metala_vision.engine.publishing import publish

    result = publish(args.run, args.out, args.name, args.license, args.weights)
    print(f"{result['folder']}: {', '.join(result['files'])}")
    return result


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import run_tool

    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
