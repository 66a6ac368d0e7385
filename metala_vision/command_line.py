"""What the tools share: errors without tracebacks, one JSON line at the end, an exit code that can be trusted.

It needs torch alone, since the tools that time kernels and models run where mmengine is not installed.
"""

import contextlib
import ctypes
import importlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import torch

from .errors import InputError
from .files import to_json
from .kernels.cache import CacheError, cache_folder


def run_tool(main: Callable[[], dict], quiet: bool = False) -> int:
    """Runs `main`, and prints what it returns as one line of JSON, the last on stdout.

    Args:
        main: the tool; its result is a dict of plain values.
        quiet: send everything else that is printed to stderr.

    Returns:
        The exit code: 0; 2 for input that does not fit, with the reason on stderr; 130 after an interrupt. Any other
        error is a fault of the library and keeps its traceback.
    """
    process = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    try:
        with (
            _lent_cache(told=process == "0"),
            contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext(),
        ):
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


def keep_freed_memory() -> bool:
    """Tells glibc to keep what this process frees, up to 2 GB, instead of handing it back to the system at once.

    By itself it hands back every block of more than 32 MB, and the next one of that size costs a page fault for each
    4 kB: up to a quarter of the time of a test at 640 pixels (docs/tried.md, memory). It is for programs that compute
    until they end: a tool calls it, the library does not.

    Returns:
        Whether it was done: not with another C library or an old glibc, nor where the user has told it something by its
        variables.
    """
    told = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if told or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Older releases take no more than 32 MB. There the limits stay what they are, since glibc raises them by itself.
    return bool(mallopt(_BLOCK, 1 << 30) and mallopt(_KEPT, 2**31 - 1))


_KEPT, _BLOCK = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h


@contextlib.contextmanager
def _lent_cache(told: bool) -> Iterator[None]:
    """Lends a user without a home a cache folder while the tool runs: mmengine cannot be imported without one."""
    try:
        cache_folder()
    except CacheError as error:
        reason = str(error)
    else:
        yield
        return
    before = os.environ.get("XDG_CACHE_HOME")
    try:
        lent = tempfile.TemporaryDirectory(prefix="metala_vision-", ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(f"{reason}; no temporary folder can take its place: {error}") from error
    if told:
        print(f"{reason}; nothing is kept for the next run", file=sys.stderr)
    with lent as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def import_modules(names: Sequence[str]) -> None:
    """Imports what `--import` names, also from the working directory: modules that register mixers or models.

    Raises:
        InputError: a module that is not there, or that fails.
    """
    if names:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module is anybody's code
            raise InputError(f"--import: {name}: {type(error).__name__}: {error}") from error


def check_device(device: str) -> str:
    """Returns `device` if this machine has it.

    Raises:
        InputError: the machine lacks it, or there is no such device.
    """
    if device == "auto":
        return device
    try:
        kind = torch.device(device)
    except RuntimeError:
        kind = None
    if kind is None or kind.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"--device: got {device!r}, expected auto, cpu, cuda, cuda:1 or mps")
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device: got {device!r}, but torch finds no CUDA GPU here; use --device cpu")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device: got {device!r}, but there are {torch.cuda.device_count()} GPUs")
    if kind.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"--device: got {device!r}, but torch finds no Apple GPU here; use --device cpu")
    return device
