"""The C kernels as a shared library: compiled at first use, kept in a per-user cache, loaded through ctypes.

The library knows nothing of Python or torch, so one binary serves every version of both. It must be loaded after torch,
whose OpenMP runtime it then shares.
"""

import ctypes
import hashlib
import logging
import multiprocessing
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import torch

from .cache import CacheError, cache_folder, make_private, open_trusted, write_private

SOURCES = ("scan.c", "scan_backward.c", "channels.c", "tokens.c", "memory.c")
HEADERS = ("simd.h", "scan.h", "chunk.h")
# No fast math: linked into a shared library it makes every thread of the process flush denormals to zero.
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
OPENMP = ("-fopenmp",)
INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"),
    "AVX2": ("-mavx2", "-mfma"),
}
SECONDS_TO_COMPILE = 120
FUNCTIONS = (
    *("metala_forward", "metala_backward", "metala_forward_states", "metala_backward_states"),
    *("metala_backward_blocks", "metala_conv", "metala_conv_backward", "metala_swiglu", "metala_swiglu_backward"),
    *("metala_channels_forward", "metala_channels_backward", "metala_patches", "metala_let_malloc_keep_memory"),
)

_logger = logging.getLogger(__name__)


class NativeError(RuntimeError):
    """The C kernels cannot run here; the message says why."""


class _Loader:
    """Builds and loads once per process, whichever thread comes first; a failure is remembered too."""

    def __init__(self):
        self.reset()
        self.forks = 0
        self.forked_by: int | None = None  # its pid, unless it was a child of multiprocessing itself

    def reset(self) -> None:
        self.lock = threading.Lock()
        self.library: ctypes.CDLL | None = None
        self.error: str | None = None

    def after_fork(self) -> None:
        # A lock that another thread held stays locked in the child; the pool of OpenMP threads does not come along.
        self.lock = threading.Lock()
        self.forks += 1
        self.forked_by = os.getppid() if multiprocessing.parent_process() is None else None

    @property
    def has_lost_threads(self) -> bool:
        """Whether this process was forked from one that had OpenMP threads, which a fork does not copy.

        multiprocessing's fork server has none, since it does nothing but import. A process forked from that server has
        a parent, in multiprocessing's sense, that is not the process it was forked from.
        """
        if self.forks == 0:
            return False
        parent = multiprocessing.parent_process()
        if parent is None or self.forks > 1 or self.forked_by is None:
            return True
        return parent.pid == self.forked_by


_loader = _Loader()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_loader.after_fork)


def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        NativeError: no compiler, or the compiler or the loader failed.
    """
    if _loader.library is None:
        with _loader.lock:
            if _loader.library is None and _loader.error is None:
                try:
                    library = _load()
                    library.metala_let_malloc_keep_memory()
                    _loader.library = library
                except NativeError as error:
                    _loader.error = str(error)
    if _loader.library is None:
        raise NativeError(_loader.error)
    return _loader.library


def available() -> bool:
    """Whether `library()` works; compiles on the first call."""
    try:
        library()
    except NativeError:
        return False
    return True


def num_threads() -> int:
    """torch's number of threads; one after a fork, where the parent's OpenMP threads no longer exist."""
    return 1 if _loader.has_lost_threads else torch.get_num_threads()


def instruction_set() -> str:
    """ "AVX512", "AVX2" or "" (the compiler's baseline): what torch found on this processor."""
    capability = torch.backends.cpu.get_cpu_capability()
    return capability if capability in INSTRUCTIONS else ""


def _load(cache: Path | None = None) -> ctypes.CDLL:
    """Loads the library from a cache, by default the user's, and compiles it into the cache if it is missing there.

    If the cache cannot be written, or somebody else could have written to it, this process compiles a copy of its own.
    """
    compiler = _compiler()
    folder = Path(__file__).resolve().parent
    instructions = instruction_set()
    flags = FLAGS + INSTRUCTIONS.get(instructions, ())
    status = os.stat(compiler[0])
    key = hashlib.sha256(repr((flags, OPENMP, compiler, status.st_size, status.st_mtime_ns)).encode())
    for name in HEADERS + SOURCES:
        key.update((folder / name).read_bytes())
    name = f"metala-{platform.machine()}-{instructions or 'baseline'}-{key.hexdigest()[:16]}.so"
    sources = [str(folder / name) for name in SOURCES]
    try:
        cache = cache_folder() if cache is None else cache
        make_private(cache)
        if found := _kept(cache / name):
            return found
        if found := _kept(_of_one_thread(cache / name)):
            _logger.warning("%s has no OpenMP: the C kernels run on one thread", compiler[0])
            return found
        return _opened(_compile(compiler, flags, sources, cache / name))
    except OSError as error:
        where = "" if cache is None else f" in {cache}"
        _logger.warning("kernels cannot be kept%s (%s): compiled for this process alone", where, error)
    try:
        # A loaded library outlives its file. On NFS the file cannot be removed until then, which is no reason to fail.
        with tempfile.TemporaryDirectory(prefix="metala_vision-", ignore_cleanup_errors=True) as private:
            return _opened(_compile(compiler, flags, sources, Path(private) / name))
    except OSError as error:
        raise NativeError(f"the C kernels do not load: {error}") from error


def _kept(path: Path) -> ctypes.CDLL | None:
    """The library of an earlier process, or None where it has to be compiled.

    Raises:
        CacheError: somebody else could have written it.
        OSError: it is loaded now, but lacks functions. Its file is removed, so that the next process compiles it anew.
    """
    try:
        with open_trusted(_checksum(path)) as file:
            checksum = file.read().decode(errors="replace")
        return _opened(path, checksum)
    except (FileNotFoundError, _DamagedError):
        return None
    except CacheError:
        raise
    except _IncompleteError:
        path.unlink()
        raise
    except OSError as error:
        _logger.warning("%s does not load (%s): compiled anew", path, error)
        return None


class _DamagedError(OSError):
    """A file that was cut short. Loading it might end the process instead of raising an error."""


class _IncompleteError(OSError):
    """A library that loads but lacks functions."""


def _opened(path: Path, checksum: str | None = None) -> ctypes.CDLL:
    """Loads a library that has all functions, from the open file that was checked, whatever has its name by then."""
    with open_trusted(path) as file:
        if checksum is not None and checksum != hashlib.sha256(file.read()).hexdigest():
            raise _DamagedError(f"{path.name} is not what its checksum says")
        descriptor = os.dup(file.fileno())
    itself = f"/proc/self/fd/{descriptor}"
    try:
        found = ctypes.CDLL(itself if os.path.exists(itself) else str(path))
    except OSError as error:
        os.close(descriptor)
        raise OSError(str(error).replace(itself, str(path))) from error
    # The descriptor stays open, or the loader would take the next file with that number for this library.
    if missing := [name for name in FUNCTIONS if not hasattr(found, name)]:
        raise _IncompleteError(f"{path.name} has no {', '.join(missing)}")
    return found


def _compiler() -> tuple[str, ...]:
    """The command: $CC, which may have arguments, or the first of the usual names."""
    own = os.environ.get("CC", "").strip()
    candidates = [own] if own else ["gcc", "cc", "clang"]
    try:
        commands = [shlex.split(candidate) for candidate in candidates]
    except ValueError as error:
        raise NativeError(f"CC: got {own!r}, which is no command: {error}") from error
    for name, *arguments in commands:
        if path := shutil.which(name):
            return path, *arguments  # not resolved: a program behind a link may act by the link's name
    raise NativeError(f"no C compiler: looked for {', '.join(candidates)}")


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _of_one_thread(path: Path) -> Path:
    """Where a library without OpenMP is kept."""
    return path.with_name(f"{path.stem}-single{path.suffix}")


def _compile(compiler: tuple[str, ...], flags: tuple[str, ...], sources: list[str], path: Path) -> Path:
    """Compiles into `path`, or into the name of one thread where there is no OpenMP; whole or not at all.

    Whatever else a compiler fails for, such as too little memory, may be over the next time: nothing is kept then.

    Raises:
        NativeError: the compiler fails.
        OSError: the folder cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=path.stem, suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    try:
        error = _run([*compiler, *flags, *OPENMP, *sources, "-o", temporary])
        if error:
            wants_openmp = any(name in error.lower() for name in ("openmp", "gomp", "libomp", "omp.h", "lomp"))
            if not wants_openmp or _run([*compiler, *flags, *sources, "-o", temporary]):
                raise NativeError(f"{compiler[0]} failed: {_first(error)}")
            _logger.warning("%s has no OpenMP (%s): the C kernels run on one thread", compiler[0], _first(error))
            path = _of_one_thread(path)
        os.chmod(temporary, 0o700)  # a linker makes the file anew, by the umask
        digest = hashlib.sha256(Path(temporary).read_bytes()).hexdigest()
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    write_private(_checksum(path), digest.encode())
    return path


def _run(command: list[str]) -> str:
    """What a failing compiler prints, or an empty string if it succeeds."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS_TO_COMPILE)
    except subprocess.TimeoutExpired:
        return f"no result after {SECONDS_TO_COMPILE} s"
    if result.returncode == 0:
        return ""
    return result.stderr.strip() or f"exit code {result.returncode}"


def _first(printed: str) -> str:
    """The first error in what a compiler has printed."""
    return next((line for line in printed.splitlines() if "error" in line), printed.splitlines()[0])
