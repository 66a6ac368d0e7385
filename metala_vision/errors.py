"""The error for input that does not fit: data, configs, checkpoints, command lines."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user gave does not fit. The message names it, what was found and what to do; no traceback is needed."""


def near_matches(name: str, known: Iterable[str]) -> str:
    """ " (did you mean ...?)" with the nearest names out of `known`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(matches)}?)" if matches else ""
