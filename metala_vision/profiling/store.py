"""The figures of a sweep, in a file that is whole at any moment and belongs to one process at a time."""

import json
from pathlib import Path

from filelock import FileLock, Timeout

from metala_vision.errors import InputError
from metala_vision.files import write_json

FILE = "cells.json"
MEASURED = ("ok", "alone")  # in turn with others, or one step of it alone


class Store:
    """Rows of measured cells, what their own processes found, and the rounds that they ran in turn, all by key.

    Used as a context: two sweeps in one folder would overwrite each other's figures.
    """

    def __init__(self, folder: str | Path, environment: dict):
        """Reads what is there.

        Raises:
            InputError: figures of another machine, or of other versions; a file that does not hold any.
        """
        self.path = Path(folder) / FILE
        if Path(folder).exists() and not Path(folder).is_dir():
            raise InputError(f"--out: {folder} is a file, expected a folder")
        self._lock = FileLock(Path(folder) / ".lock")
        self.environment = environment
        self.cells: dict[str, dict] = {}
        self.probes: dict[str, dict] = {}
        self.races: dict[str, dict[str, list[float]]] = {}  # seconds of each round, by the race and the key
        if self.path.is_file():
            try:
                content = json.loads(self.path.read_text())
                found = content["environment"]
                self.cells, self.probes, self.races = (content[name] for name in ("cells", "probes", "races"))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"--out: {self.path} does not hold measured cells: {error!r}") from error
            different = [name for name in environment | found if environment.get(name) != found.get(name)]
            if different:
                had = ", ".join(f"{name} {found.get(name)} (now {environment.get(name)})" for name in different)
                raise InputError(f"--out: {folder} holds figures of another environment: {had}; choose another folder")

    def __enter__(self) -> "Store":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(f"--out: another sweep is measuring into {self.path.parent}") from error
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def forget_failures(self, keys: list[str]) -> None:
        """Lets those of these cells be tried again that failed or had too little memory."""
        for rows in (self.cells, self.probes):
            for key in keys:
                if key in rows and rows[key]["status"] not in MEASURED:
                    del rows[key]

    def save(self) -> None:
        """Writes the file."""
        content = {name: getattr(self, name) for name in ("environment", "cells", "probes", "races")}
        write_json(self.path, content)
