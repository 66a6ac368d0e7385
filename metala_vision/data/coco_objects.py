"""The objects of an image in COCO's form: boxes, and masks as polygons or run-length codes."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from metala_vision.errors import InputError

from .boxes import Objects, Troubles, sound_boxes
from .orientation import Size
from .rle import runs

MASKLESS = "objects without a mask ignored"
ELSEWHERE = "objects with a mask outside of their image ignored"
OTHER_SIZE = "objects with a mask of another size than their image ignored"
BROKEN = "objects with a run-length code that does not fill its mask ignored"
UNUSABLE = (MASKLESS, ELSEWHERE, OTHER_SIZE, BROKEN)


def objects_of(
    annotations: Sequence[dict],
    label_of: Mapping[int, int],
    file: str,
    size: Size | None,
    masks: bool,
    troubles: Troubles,
) -> Objects:
    """The objects of one image. Where masks are asked for, an object without one becomes a crowd with its box as mask.

    Args:
        annotations: the annotations of the image.
        label_of: label of each category id.
        file: name of the image file, for messages.
        size: height and width of the image, None where they are unknown.
        masks: whether masks are asked for.
        troubles: where faults are counted.

    Raises:
        InputError: a bbox that is no list of four numbers.
    """
    try:
        boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
        areas = np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in annotations], np.float32)
    except (TypeError, ValueError, IndexError) as error:
        wrong = next((a for a in annotations if not _is_box(a["bbox"])), annotations[0])
        raise InputError(
            f"annotations: {file}: annotation {wrong.get('id')} has the bbox {wrong['bbox']!r}, expected four numbers "
            f"in a list"
        ) from error
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([label_of[a["category_id"]] for a in annotations], np.int64)
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool)
    segmentations: tuple[list | dict, ...] | None = None
    if masks:
        found: list[list | dict] = []
        for i, annotation in enumerate(annotations):
            mask = _mask(annotation.get("segmentation"), size, file, troubles)
            if mask is None:
                left, top, right, bottom = boxes[i].tolist()
                mask, crowd[i] = [[left, top, right, top, right, bottom, left, bottom]], True
            found.append(mask)
        segmentations = tuple(found)
    keep = sound_boxes(boxes, size, file, troubles)
    return Objects(boxes, labels, crowd, segmentations, areas).only(keep)


def _is_box(bbox: object) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(value, int | float) for value in bbox)


def size_of_codes(annotations: Sequence[dict]) -> Size | None:
    """Height and width that the first run-length code of an image's objects states; None where there is no code."""
    codes = [a["segmentation"] for a in annotations if isinstance(a.get("segmentation"), dict)]
    sizes = [code["size"] for code in codes if _is_size(code.get("size"))]
    return tuple(sizes[0]) if sizes else None


def _is_size(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) and side > 0 for side in value)


def _mask(found: object, size: Size | None, file: str, troubles: Troubles) -> list | dict | None:
    """The polygons or the run-length code of an object, if they can be decoded for an image of this size.

    None for an object without either; this is counted in `troubles`.
    """
    if isinstance(found, dict):
        return _code(found, size, file, troubles)
    parts = found if isinstance(found, list) else []
    whole = [part for part in parts if _is_polygon(part)]
    if not whole:
        troubles.add(MASKLESS, file)
        return None
    for _ in range(len(parts) - len(whole)):
        troubles.add("polygons of fewer than three points dropped", file)
    inside = whole if size is None else [part for part in whole if _is_inside(part, size, file, troubles)]
    if not inside:
        troubles.add(ELSEWHERE, file)
        return None
    return inside


def _is_polygon(part: object) -> bool:
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        return False
    try:
        return math.isfinite(sum(part))
    except TypeError:
        return False


def _is_inside(part: list[float], size: Size, file: str, troubles: Troubles) -> bool:
    """Whether a part of a polygon may be within its image."""
    height, width = size
    columns, rows = part[::2], part[1::2]
    left, top, right, bottom = min(columns), min(rows), max(columns), max(rows)
    # pycocotools follows a polygon far outside of the image pixel by pixel, until there is no memory left.
    far = left < -width or top < -height or right > 2 * width or bottom > 2 * height
    if far or left >= width or top >= height or right <= 0 or bottom <= 0:
        troubles.add("polygons outside of their image dropped", file)
        return False
    if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
        troubles.add("polygons clipped to their image", file)
    return True


def _code(code: dict, size: Size | None, file: str, troubles: Troubles) -> dict | None:
    if "counts" not in code or not _is_size(code.get("size")):
        troubles.add(MASKLESS, file)
        return None
    height, width = code["size"]
    if size is not None and size != (height, width):
        troubles.add(OTHER_SIZE, f"{file} (mask {width}x{height}, image {size[1]}x{size[0]})")
        return None
    lengths = runs(code["counts"])
    if lengths is None or lengths.sum() != height * width:
        troubles.add(BROKEN, file)
        return None
    return code
