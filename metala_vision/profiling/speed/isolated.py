"""Runs functions in processes of their own: one that is killed, stuck or out of memory takes nothing else along.

On Unix these processes are forked from a server that has done nothing but import: each is fresh, and starts at once.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from metala_vision.errors import InputError

PRELOAD = ["metala_vision", "metala_vision.profiling.speed.workers"]
if sys.platform == "win32":
    _context = multiprocessing.get_context("spawn")
else:
    _context = multiprocessing.get_context("forkserver")


class Ended(Exception):
    """The process ended before its function returned: `reason` says how, `memory` whether for lack of memory."""

    def __init__(self, reason: str, memory: bool = False):
        super().__init__(reason)
        self.reason = reason
        self.memory = memory


class Worker:
    """A function that runs in a process of its own, and the two ends of what is said to it and what it says.

    It is a context, at whose end the process is killed.
    """

    def __init__(self, function: Callable, arguments: dict, memory_limit: int | None, asked: bool = False):
        """Starts `function(send, **arguments)`.

        Args:
            function: of a module that can be imported; `send` takes dicts of plain values.
            memory_limit: the most bytes of data of the process; beyond it, PyTorch raises its error for a lack of
                memory.
            asked: whether `function` has an argument `receive` too, which waits for what `ask` gives it.
        """
        if _context.get_start_method() == "forkserver":
            _context.set_forkserver_preload(PRELOAD)
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(
            target=_run, args=(theirs, function, arguments, memory_limit, asked), daemon=True
        )
        with _without_main():
            self._process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Its number."""
        return self._process.pid

    def close(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def receive(self, seconds: float) -> dict | None:
        """The next message, or None once the function has returned.

        Raises:
            Ended: the function raised, was killed, or was silent for more than `seconds`.
        """
        try:
            if not self._pipe.poll(min(seconds, 86400)):
                raise Ended(f"nothing came back within {seconds:.0f} s")
            message = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise Ended(*_death(self._process.exitcode)) from None
        if "error" in message:
            raise Ended(message["error"], message["memory"])
        if "returned" in message:
            self._process.join(10)  # it ends by itself, and leaves nothing behind
            return None
        return message

    def ask(self, message: dict, seconds: float) -> dict | None:
        """What comes back for a message; see `receive`."""
        with contextlib.suppress(ConnectionError):  # the process is dead, and `receive` says of what
            self._pipe.send(message)
        return self.receive(seconds)


def stream(
    function: Callable, arguments: dict, seconds: float, memory_limit: int | None
) -> Generator[dict, None, None]:
    """Yields what `function(send, **arguments)` sends from a process of its own, which ends with this generator.

    Args:
        function: of a module that can be imported; `send` takes dicts of plain values.
        seconds: at most between two messages.
        memory_limit: the most bytes of data of the process; beyond it, PyTorch raises its error for a lack of memory.

    Raises:
        Ended: the function raised, was killed, or was silent for too long.
    """
    with Worker(function, arguments, memory_limit) as worker:
        while (message := worker.receive(seconds)) is not None:
            yield message


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hides the user's script, which a new process would run again, and so begin the same measurement."""
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


def _death(code: int | None) -> tuple[str, bool]:
    if code == -9:
        return "killed by the system: out of memory, most likely", True
    if code is not None and code < 0:
        return f"died of signal {-code} ({signal.strsignal(-code)})", False
    return f"ended with exit code {code}", False


def _run(pipe: Connection, function: Callable, arguments: dict, memory_limit: int | None, asked: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the parent ends this one
    os.dup2(2, 1)  # the parent's standard output is for its result
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if memory_limit is not None:
            _limit_memory(memory_limit)
        function(pipe.send, **arguments | ({"receive": pipe.recv} if asked else {}))
    except Exception as error:
        pipe.send({"error": one_line(error), "memory": is_out_of_memory(error)})
    else:
        pipe.send({"returned": True})


def _limit_memory(limit: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def one_line(error: BaseException) -> str:
    """An error as one line, for a row of a table."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, of the machine or of a GPU."""
    words = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "alloc_failed", "create a memory")
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, (RuntimeError, OSError, InputError)) and any(word in str(error).lower() for word in words)
    )
