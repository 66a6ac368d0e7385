"""What the tools share: errors without tracebacks, one JSON line at the end, an exit code that can be trusted."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from metala_vision.errors import InputError

from .files import write_json


def write_result(result: dict, folder: str | Path) -> dict:
    """Writes `result.json` into the folder and returns the result."""
    write_json(Path(folder) / "result.json", result)
    return result


def run_tool(main: Callable[[], dict], quiet: bool = False) -> int:
    """Runs `main`, prints what it returns as one JSON line, last on stdout.

    Args:
        main: the tool; its result is a dict of plain values.
        quiet: send everything else that is printed to stderr.

    Returns:
        The exit code: 0; 2 for input that does not fit, with the reason on stderr; 130 after an interrupt. Any other
        error is ours and keeps its traceback.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
            result = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; continue with --resume auto", file=sys.stderr)
        return 130
    print(json.dumps(result), flush=True)
    return 0
