"""Reads COCO's JSON files and checks what the form leaves open, such as two images with one id."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from mmengine.logging import print_log

from metala_vision.errors import InputError

from .boxes import Troubles

WANTED = {"images": ("id", "file_name"), "annotations": ("bbox",), "categories": ("id", "name")}


def read_coco(file: Path, troubles: Troubles) -> dict[str, list[dict]]:
    """The `images`, `annotations` and `categories` of a file.

    Images and annotations that are repeated under one id are dropped, and counted in `troubles`.

    Raises:
        InputError: no such file, not JSON, not of COCO's form, no images, one id or one file for different images, or
            one id for different categories.
    """
    if not file.is_file():
        raise InputError(f"annotations: no file {file}")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(f"annotations: {file} is no whole JSON file: {error}") from error
    for part, keys in WANTED.items():
        if not isinstance(content, dict) or part not in content:
            raise InputError(f"annotations: {file} has no {part!r}; expected an object with {', '.join(WANTED)}")
        entries = content[part]
        if not isinstance(entries, list) or not all(isinstance(e, dict) and all(k in e for k in keys) for e in entries):
            raise InputError(f"annotations: {file}: {part!r} is no list of objects with {', '.join(keys)}")
    if not content["images"]:
        raise InputError(f"annotations: {file} has no images")
    images = _images(content["images"], file, troubles)
    files = {image["id"]: image["file_name"] for image in images}
    annotations = _annotations(content["annotations"], files, troubles)
    categories: dict[int, str] = {}
    for category in content["categories"]:
        former = categories.setdefault(category["id"], category["name"])
        if former != category["name"]:
            raise InputError(
                f"annotations: {file}: {former!r} and {category['name']!r} both have the category id "
                f"{category['id']}; give each an id of its own"
            )
    print_log(f"{file}: {len(images)} images, {len(annotations)} objects", logger="current", level=logging.INFO)
    return dict(images=images, annotations=annotations, categories=content["categories"])


def _images(entries: Iterable[dict], file: Path, troubles: Troubles) -> list[dict]:
    of_id: dict[object, dict] = {}
    of_file: dict[str, object] = {}
    for image in entries:
        former = of_id.setdefault(image["id"], image)
        if former is not image:
            if former["file_name"] != image["file_name"]:
                raise InputError(
                    f"annotations: {file}: {former['file_name']} and {image['file_name']} both have the image id "
                    f"{image['id']}, and nothing says which of them its annotations are of; give each an id of its own"
                )
            troubles.add("image entries dropped that are there twice", image["file_name"])
            continue
        same = of_file.setdefault(image["file_name"], image["id"])
        if same != image["id"]:
            raise InputError(
                f"annotations: {file}: the images {same} and {image['id']} are both {image['file_name']}; an object of "
                f"one would be background in the other. Give their annotations one image_id, and remove one of them"
            )
    return list(of_id.values())


def _annotations(entries: Iterable[dict], files: dict[object, str], troubles: Troubles) -> list[dict]:
    """Different annotations with one id are all kept, since nothing here depends on the id."""
    of_id: dict[object, dict] = {}
    kept = []
    for annotation in entries:
        number = annotation.get("id")
        former = annotation if number is None else of_id.setdefault(number, annotation)
        if former is not annotation:
            name = str(files.get(annotation.get("image_id")))
            if former == annotation:
                troubles.add("annotations dropped that are there twice", name)
                continue
            troubles.add("annotations with an id that another one has", name)
        kept.append(annotation)
    return kept
