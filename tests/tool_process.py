"""A tool in a process of its own that does not spend seconds on imports: a copy of a server that has imported it all.

For what a fresh interpreter alone can show (imports, warnings of imports, a bare checkout) tests start one themselves.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
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
) -> CompletedProcess:
    """Runs tools/`tool` with arguments, in the current folder, as `subprocess.run` with text output does.

    Args:
        tool: name of the file.
        *arguments: of its command line.
        env: variables to set beside those of this process; PYTHONPATH is put before the path, OMP_NUM_THREADS is the
            number of threads.
        prepare: called in the process before the tool runs; a function of a module, or a partial of one.
        seconds: after which the process is killed and TimeoutError raised.
    """
    _context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        process = _context.Process(
            target=_run, args=([str(ROOT / "tools" / tool), *arguments], dict(env or {}), os.getcwd(), paths, prepare)
        )
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{tool} ran longer than {seconds} s:\n{Path(paths[1]).read_text()}")
        stdout, stderr = (Path(path).read_text() if Path(path).exists() else "" for path in paths)
        return CompletedProcess([tool, *arguments], process.exitcode, stdout, stderr)


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
