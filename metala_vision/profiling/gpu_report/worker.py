"""The process of one part: runs its cells one after the other, and writes each row before the next is begun.

python -m metala_vision.profiling.gpu_report.worker SOURCE --rows FILE --scratch FOLDER --seconds S --device cuda
"""

import argparse
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import torch

from metala_vision.profiling.speed.isolated import is_out_of_memory, one_line

from . import rows
from .parts import Cell, Job

BROKEN = 3  # exit code: the device answers no more, and what is left needs a new process


def main() -> int:
    """The exit code: 0, or BROKEN."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="MODULE:FUNCTION")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--ceilings", type=json.loads, default={})
    parser.add_argument("--share", type=json.loads, default=[0, 1], help="[i, n]: every n-th cell, beginning with i")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if args.rehearse:
        torch.set_num_threads(1)  # so small a problem gains nothing by more, and they would wait for each other
    job = Job(args.device, args.rehearse, deadline, args.scratch, args.ceilings)
    module, function = args.source.split(":")
    number, shares = args.share
    cells = list(getattr(importlib.import_module(module), function)(job))[number::shares]
    rows.append(args.rows, {"planned": [cell.key for cell in cells]})
    done = {*rows.values(args.rows, "begun"), *rows.values(args.rows, "kept")}
    for cell in cells:
        if cell.key in done:
            continue
        if job.left <= 0:
            break
        rows.append(args.rows, {"begun": cell.key})
        print(f"--- {cell.key}", flush=True)
        rows.append(args.rows, {"cell": cell.key, **row_of(cell)})
        if job.device == "cuda" and not still_answers():
            return BROKEN
    return 0


def _end_with(parent: int) -> None:
    """Ends this process, and all that it has started, once its parent is no more: a cell that hangs keeps the GPU."""
    while os.getppid() == parent:
        time.sleep(1)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def row_of(cell: Cell) -> dict:
    """The row of a cell, with its status and the seconds it took; an error becomes a row with its reason."""
    start = time.perf_counter()
    try:
        row = {"status": "ok", **cell.run()}
    except Exception as error:  # of one cell: the others go on
        traceback.print_exc()
        row = {"status": "out of memory" if is_out_of_memory(error) else "failed", "reason": one_line(error)}
    gc.collect()
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def still_answers() -> bool:
    """Whether the device still computes: after an illegal access every call fails until the process ends."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:  # whatever torch calls it: every later call would raise it again
        traceback.print_exc()
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
