#!/usr/bin/env python3
"""Say what a model sees in pictures: classes, objects with their boxes, or areas.

It takes a checkpoint of any run, a folder of tools/publish.py, a file of tools/export.py or a model of timm, and
pictures as files, folders, patterns or videos. Each is prepared as the model's test prepares images, turned as its EXIF
note says. A line is printed for each as it is done. What cannot be read is named and skipped. The last line printed is
the result as JSON; with --out the folder has predictions.jsonl, predictions.csv and pictures with what was found.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from arguments import add_json, image_size

EXAMPLES = """examples:
  python tools/predict.py work_dirs/metala_vit_nano_160_imagenette_30e/last.pth photos
  python tools/predict.py model.onnx 'photos/*.jpg' --top-k 1 --out found
  python tools/predict.py work_dirs/detector/last.pth street.jpg --min-score 0.5 --out found
  python tools/predict.py work_dirs/detector/last.pth clip.mp4 --every 10 --out found
  python tools/predict.py work_dirs/segmenter/last.pth survey.tif --tile 1024 --max-pixels 200000000 --out found
  python tools/predict.py vit_small_patch16_224.augreg_in1k --pretrained photos
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="MODEL", help="checkpoint, folder, exported file or model of timm")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders, patterns in quotes, or videos")
    parser.add_argument("--out", metavar="FOLDER", help="where lines of JSON, a table and pictures are written")
    parser.add_argument("--no-pictures", action="store_true", help="write no pictures")
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="classes that are told (default: 5)")
    parser.add_argument(
        "--min-score", type=float, default=0.3, metavar="S", help="least score of an object (default: 0.3)"
    )
    parser.add_argument(
        "--img-size",
        type=image_size,
        metavar="N",
        help="side, or HEIGHTxWIDTH, that a classifier sees; shorter side for the others (default: the model's)",
    )
    parser.add_argument("--tile", type=int, metavar="N", help="cut large pictures into overlapping tiles of this side")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="of a picture (default: Pillow's 89 million)")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="take each n-th frame of a video (default: 1)"
    )
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="images of a step (default: 16)")
    parser.add_argument(
        "--runtime", metavar="NAME", help="of a file: onnxruntime, openvino, torch or aoti (default: by its ending)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="(default: torch's, or the runtime's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    parser.add_argument("--pretrained", action="store_true", help="timm's weights, for a model of timm")
    add_json(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> dict:
    from PIL import Image

    from metala_vision.errors import InputError
    from metala_vision.prediction import Predictor
    from metala_vision.prediction.pictures import places
    from metala_vision.prediction.writing import write_predictions

    if args.max_pixels is not None and args.max_pixels < 1:
        raise InputError(f"--max-pixels: got {args.max_pixels}, expected at least 1")
    if args.max_pixels is not None:
        Image.MAX_IMAGE_PIXELS = args.max_pixels
    predictor = Predictor(
        args.source,
        top_k=args.top_k,
        min_score=args.min_score,
        img_size=args.img_size,
        tile=args.tile,
        batch=args.batch,
        runtime=args.runtime,
        threads=args.threads,
        device=args.device,
        **({"pretrained": True} if args.pretrained else {}),
    )
    begun = time.perf_counter()
    chosen = places(args.images)
    found = predictor.with_pictures(chosen, args.every)
    if args.out is None:
        predictions = (one for _, one in found)
    else:
        named = [Path(text) for text in args.images if Path(text).is_dir()]
        root = os.path.commonpath([os.path.abspath(p) for p in (*named, *(path.parent for path in chosen))])
        predictions = write_predictions(found, args.out, predictor.task, predictor.names, root, not args.no_pictures)
    count, skipped = 0, []
    for one in predictions:
        print(str(one).encode(errors="replace").decode(), flush=True)  # names of files may be any bytes
        count += 1
        if one.error:
            skipped.append({"image": one.image, "error": one.error})
    if len(skipped) == count:
        raise InputError(
            f"images: none of {count} can be read; the first: {skipped[0]['image']}: {skipped[0]['error']}"
        )
    seconds = time.perf_counter() - begun
    print(f"pictures: {count - len(skipped)} in {seconds:.1f} s; not read: {len(skipped)}")
    return dict(
        task=predictor.task,
        images=count - len(skipped),
        skipped=skipped,
        seconds=round(seconds, 3),
        out=None if args.out is None else str(Path(args.out)),
    )


if __name__ == "__main__":
    arguments = parse_args()
    # Not above: torch and timm take seconds to import, and --help should not.
    from metala_vision.command_line import keep_freed_memory, run_tool

    keep_freed_memory()
    sys.exit(run_tool(lambda: main(arguments), quiet=arguments.json))
