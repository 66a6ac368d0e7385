"""A tool in a process of its own that does not spend seconds on imports: a copy of a server that has imported it all.

For what a fresh interpreter alone can show (imports, warnings of imports, a bare checkout) tests start one themselves.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess

import torch

ROOT = Path(__file__).resolve().parent.parent
PRELOAD = ["metala_vision.engine", "metala_vision.engine.dry_run", "metala_vision.engine.evaluation", "tool_process"]
_context = multiprocessing.get_context("forkserver")


def run_tool(
    tool: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    prepare: Callable[[], object] | None = None,
    seconds: float = 240,
    processes: int = 1,
) -> CompletedProcess:
    """Runs tools/`tool` with arguments, in the current folder, as `subprocess.run` with text output does.

    With several processes they are told of each other as torchrun tells them; but none ends because another one died.

    Args:
        tool: name of the file.
        *arguments: of its command line.
        env: variables to set beside those of this process; PYTHONPATH is put before the path, OMP_NUM_THREADS is the
            number of threads.
        prepare: called in the process before the tool runs; a function of a module, or a partial of one.
        seconds: after which the processes are killed and TimeoutError raised.
        processes: how many; their outputs come one after the other, and the first exit code that is not 0.
    """
    _context.set_forkserver_preload(PRELOAD)
    command, end = [str(ROOT / "tools" / tool), *arguments], time.monotonic() + seconds
    ranks = _ranks(processes) if processes > 1 else [{}]
    with tempfile.TemporaryDirectory() as folder:
        paths = [[str(Path(folder) / f"{name}{rank}") for name in ("stdout", "stderr")] for rank in range(processes)]
        started = [
            _context.Process(target=_run, args=(command, {**(env or {}), **rank}, os.getcwd(), files, prepare))
            for rank, files in zip(ranks, paths)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(max(0.0, end - time.monotonic()))
        late = [process for process in started if process.exitcode is None]
        for process in late:
            process.kill()
            process.join()
        stdout, stderr = (
            "".join(path.read_text() for path in map(Path, names) if path.exists()) for names in zip(*paths)
        )
    if late:
        raise TimeoutError(f"{tool} ran longer than {seconds} s:\n{stderr}")
    code = next((process.exitcode for process in started if process.exitcode != 0), 0)
    return CompletedProcess([tool, *arguments], code, stdout, stderr)


def _ranks(processes: int) -> list[dict[str, str]]:
    """The variables by which torchrun tells each process which one it is, and where they meet."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    shared = dict(WORLD_SIZE=str(processes), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    return [dict(RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(processes)]


def _run(
    command: list[str], env: dict[str, str], cwd: str, paths: list[str], prepare: Callable[[], object] | None
) -> None:
    multiprocessing.set_start_method(None, force=True)  # that of this process is not the tool's
    for number, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    os.environ.update(env)
    os.chdir(cwd)
    # As for a script: its own folder first, then PYTHONPATH
    sys.path[:0] = [str(ROOT / "tools"), *(entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry)]
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", 2)))
    sys.argv = command
    if prepare is not None:
        prepare()
    runpy.run_path(command[0], run_name="__main__")
