"""Arguments that several tools share. Nothing is imported here that takes time: --help should not wait."""

import argparse
import sys
from pathlib import Path

# Puts the checkout on the path, in case it was never installed. Both folders come last, so that an installed
# metala_vision is found first, and so that tools/test.py does not hide the standard library's `test`: Python itself
# puts the folder of a script first.
TOOLS = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != TOOLS] + [
    str(TOOLS),
    str(TOOLS.parent),
]


def add_config(parser: argparse.ArgumentParser) -> None:
    """The config, and what overrides it."""
    parser.add_argument("config", help="a config file, see configs/")
    parser.add_argument("--data-root", metavar="FOLDER", help="where the images are (default: the config's)")
    parser.add_argument("--num-classes", type=int, metavar="N", help="classes of the data (default: the config's)")
    parser.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="override parts of the config")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where to compute, and in how many processes."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    parser.add_argument(
        "--launcher",
        default="none",
        metavar="NAME",
        help="none, pytorch (started by torchrun) or slurm (started by srun); one GPU each, or CPUs by gloo",
    )


def image_size(text: str) -> int | tuple[int, int]:
    """A size of images: "160" for a square, "320x160" for height and width."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected pixels such as 160, or 320x160 for H x W")
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def check_out(file: str | Path) -> None:
    """Makes the folder of a file; InputError where it cannot be written, before the hours that lead to its content."""
    import os

    from metala_vision.errors import InputError

    path = Path(file)
    if path.is_dir():
        raise InputError(f"--out: {path} is a folder, expected a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: the folder of {path} cannot be made: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):  # a file is written beside and renamed
        raise InputError(f"--out: the folder of {path} cannot be written")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Whether the result alone is printed, for other programs to read."""
    parser.add_argument("--json", action="store_true", help="print nothing but the result on stdout; logs go to stderr")


def add_imports(parser: argparse.ArgumentParser) -> None:
    """Modules of the user's own that register what a tool is asked for."""
    parser.add_argument(
        "--import",
        nargs="+",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="import these first: modules that register mixers or models of your own",
    )
