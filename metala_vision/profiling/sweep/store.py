"""The figures of a sweep, in a file that is whole at any moment and belongs to one process at a time."""

import contextlib
import json
from pathlib import Path

from metala_vision.errors import InputError
from metala_vision.files import owned, write_json

FILE = "cells.json"
MEASURED = ("ok", "alone")  # in turn with others, or one step of it alone


class Store:
    """Rows of measured cells, what their own processes found, and the rounds that they ran in turn, all by key.

    It is a context that holds the folder: two sweeps in one folder would overwrite each other's figures.
    """

    def __init__(self, folder: str | Path, environment: dict):
        self.path = Path(folder) / FILE
        self.environment = environment
        self.cells: dict[str, dict] = {}
        self.probes: dict[str, dict] = {}
        self.races: dict[str, dict[str, list[float]]] = {}  # seconds of each round, by the race and the key
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "Store":
        """Takes the folder and reads what is there.

        Raises:
            InputError: the folder cannot be written, or another sweep is measuring there; its figures are of another
                machine or of other versions; its file holds no figures.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(owned(self.path.parent, "--out", "another sweep is measuring"))
            self._read()
            self._held = stack.pop_all()
        return self

    def _read(self) -> None:
        if not self.path.is_file():
            return
        try:
            content = json.loads(self.path.read_text())
            found, *rest = (dict(content[name]) for name in ("environment", "cells", "probes", "races"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"--out: {self.path} does not hold measured cells: {error!r}") from error
        self.cells, self.probes, self.races = rest
        different = [name for name in self.environment | found if self.environment.get(name) != found.get(name)]
        if different:
            had = ", ".join(f"{name} {found.get(name)} (now {self.environment.get(name)})" for name in different)
            raise InputError(
                f"--out: {self.path.parent} holds figures of another environment: {had}; choose another folder"
            )

    def __exit__(self, *_) -> None:
        self._held.close()

    def forget_failures(self, keys: list[str]) -> None:
        """Forgets which of these cells failed or had too little memory, so that they are tried again."""
        for rows in (self.cells, self.probes):
            for key in keys:
                if key in rows and rows[key]["status"] not in MEASURED:
                    del rows[key]

    def save(self) -> None:
        """Writes the file, without races that no cell belongs to."""
        named = {row.get("race") for row in self.cells.values()}
        self.races = {name: times for name, times in self.races.items() if name in named}
        content = {name: getattr(self, name) for name in ("environment", "cells", "probes", "races")}
        write_json(self.path, content)
