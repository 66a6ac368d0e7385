"""The file between a part's process and the conductor: lines of JSON, each written as soon as it is known.

{"planned": [keys]} once, {"kept": key} for a cell that an earlier run has measured, {"begun": key} before a cell is run
and {"cell": key, "status": ..., ...} after it.
"""

import json
from pathlib import Path

from metala_vision.files import to_json


def append(path: Path, row: dict) -> None:
    """Adds a line."""
    with open(path, "a") as file:
        file.write(to_json(row) + "\n")


def read(path: Path) -> list[dict]:
    """The lines; one that a killed process left unfinished is left out."""
    if not path.exists():
        return []
    whole = path.read_text().split("\n")[:-1]  # what follows the last line break was not finished
    return [json.loads(line) for line in whole]


def values(path: Path, name: str) -> list:
    """What the lines of one kind hold: `name` is "planned", "kept", "begun" or "cell"."""
    return [row[name] for row in read(path) if name in row]
