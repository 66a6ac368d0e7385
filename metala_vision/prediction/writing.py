"""Predictions in files: lines of JSON, a table, pictures with what was found, and maps of classes."""

import contextlib
import csv
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from metala_vision.errors import InputError
from metala_vision.files import to_json

from .found import Prediction
from .pictures import Picture

COLUMNS = {
    "classification": ("rank", "name", "probability"),
    "detection": ("name", "score", "left", "top", "right", "bottom"),
    "segmentation": ("name", "share"),
}
QUALITY = 90  # of JPEG
LONGEST = 65500  # pixels of a side, of JPEG
MOST_BYTES = 255  # of a file's name, on nearly every file system


def write_predictions(
    found: Iterable[tuple[Picture, Prediction]],
    out: str | Path,
    task: str,
    names: Sequence[str],
    root: str | Path,
    drawn: bool = True,
) -> Iterator[Prediction]:
    """Writes predictions as they come, and hands them on.

    Args:
        found: by `Predictor.with_pictures`.
        out: folder for predictions.jsonl, predictions.csv, pictures/ and, from a segmenter, class_maps/ with PNG files
            whose values are the classes.
        task: of the predictor.
        names: of all classes.
        root: folder above all images, whose tree `pictures/` mirrors.
        drawn: whether pictures are written.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(out)
    text: dict[str, Any] = dict(
        encoding="utf-8", errors="surrogateescape", newline=""
    )  # names of files may be any bytes
    with contextlib.ExitStack() as stack:
        with _written(out):
            folder.mkdir(parents=True, exist_ok=True)
            lines, rows = (
                stack.enter_context(open(folder / f"predictions.{ending}", "w", **text)) for ending in ("jsonl", "csv")
            )
            table = csv.DictWriter(rows, ["image", "seconds", "height", "width", *COLUMNS[task]])
            table.writeheader()
        for picture, one in found:
            with _written(out):
                lines.write(to_json(one.record()) + "\n")
                table.writerows(one.rows())
                if drawn and picture.pixels is not None:
                    _draw(picture, one, folder, os.path.relpath(one.image, root), names)
                lines.flush()
                rows.flush()
            yield one


@contextlib.contextmanager
def _written(out: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written: {error}") from error


def _named(place: str, ending: str) -> Path:
    """A place with a further ending. A name that would be too long for a file system ends in a hash of the whole."""
    path = Path(place + ending)
    name = os.fsencode(path.name)
    if len(name) <= MOST_BYTES:
        return path
    end = f"_{hashlib.sha256(name).hexdigest()[:16]}{ending}".encode()
    return path.with_name((name[: MOST_BYTES - len(end)] + end).decode(errors="ignore"))


def _draw(picture: Picture, found: Prediction, folder: Path, place: str, names: Sequence[str]) -> None:
    from .overlay import overlay  # matplotlib's font and colours, which those who do not draw need not have

    file = folder / "pictures" / _named(place, ".jpg")
    file.parent.mkdir(parents=True, exist_ok=True)
    assert picture.pixels is not None
    image = overlay(picture.pixels, found, names)
    image.thumbnail((LONGEST, LONGEST))
    image.save(file, quality=QUALITY)
    if found.class_map is not None:
        file = folder / "class_maps" / _named(place, ".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(found.class_map).save(file)
