"""Imports yapf, which mmengine needs, while other processes may be importing it for the first time.

yapf keeps its grammar in the user's cache, and writes it in place: a process that starts meanwhile, such as another
rank of a distributed run on a new machine, reads half of a file.
"""

import pickle
import time


def import_yapf(seconds: float = 5.0) -> None:
    """Imports yapf, and tries again where a file in its cache is not whole yet.

    Args:
        seconds: how long to try; writing takes some milliseconds.

    Raises:
        ImportError: the file stays broken, as after a process was killed; the message says what to remove.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            import yapf  # noqa: F401
        except (EOFError, pickle.UnpicklingError) as error:
            if time.monotonic() > end:
                raise ImportError(
                    f"yapf, which mmengine needs, has left a broken file in its cache ({error}): remove the folder "
                    "YAPF in this user's cache folder, on Linux ~/.cache/YAPF"
                ) from error
            time.sleep(0.05)
        else:
            return
