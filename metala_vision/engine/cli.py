"""What the tools share: errors without tracebacks, one JSON line at the end, an exit code that can be trusted."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from mmengine.dist import is_main_process

from metala_vision.errors import InputError
from metala_vision.files import to_json, write_json

from .scores import best_known


def say(text: str) -> None:
    """Prints a text, once for all processes."""
    if is_main_process():
        print(text, flush=True)


def write_result(result: dict, folder: str | Path) -> None:
    """Writes `result.json` into the folder and says in two lines what it holds; once for all processes."""
    path = Path(folder) / "result.json"
    if is_main_process():
        write_json(path, result)
    pictures = [result[key] for key in ("curves", "confusion_matrix", "pictures") if key in result]
    where = f"{result['images']} images ({result['dataset']}, {result['split']} split)"
    say(f"{best_known(result)} of {where}")
    say(f"pictures: {', '.join(pictures)}; result: {path}")


def run_tool(main: Callable[[], dict], quiet: bool = False) -> int:
    """Runs `main`, prints what it returns as one JSON line, last on stdout.

    Args:
        main: the tool; its result is a dict of plain values.
        quiet: send everything else that is printed to stderr.

    Returns:
        The exit code: 0; 2 for input that does not fit, with the reason on stderr; 130 after an interrupt. Any other
        error is ours and keeps its traceback.
    """
    process = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    try:
        with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
            result = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if process == "0":
        print(to_json(result), flush=True)
    return 0
