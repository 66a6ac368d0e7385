"""Boxes and masks in COCO's form: one JSON file for all images."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from metala_vision.errors import InputError

from .base import check_split
from .boxes import BoxDataset, Objects, Troubles, sound_boxes
from .image_folder import read_image
from .rle import decode_any

MASKLESS = "objects without a mask ignored"


@DATASETS.register_module()
class CocoDetection(BoxDataset):
    """`root/annotations/instances_val2017.json` and `root/val2017`, or files of that form anywhere.

    Args:
        root: the folder.
        split: "train", "val" or "test".
        transform: see `BoxDataset`.
        annotations: the JSON file, with {split}.
        images: folder of its images, with {split}.
        masks: read the masks too.
        classes: names of the categories to use, in this order; None is all of them in the order of their ids. Those
            of one name are one class.

    Raises:
        InputError: a missing or broken file, an annotation of an unknown image or category, masks asked for and absent.
    """

    def __init__(
        self,
        root: str,
        split: str,
        transform: dict | None = None,
        annotations: str = "annotations/instances_{split}2017.json",
        images: str = "{split}2017",
        masks: bool = False,
        classes: Sequence[str] | None = None,
    ):
        check_split(split)
        self.file = Path(root) / annotations.format(split=split)
        folder = Path(root) / images.format(split=split)
        if not folder.is_dir():
            raise InputError(f"images: no folder {folder}")
        content = _read(self.file)
        categories = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
        names = tuple(dict.fromkeys(categories.values() if classes is None else classes))
        if missing := [name for name in names if name not in categories.values()]:
            raise InputError(f"classes: {self.file} has no category {', '.join(missing)}")
        label_of = {category: 1 + names.index(name) for category, name in categories.items() if name in names}
        used = Counter(annotation.get("category_id") for annotation in content["annotations"])
        of_name = [[category for category, name in categories.items() if name == wanted] for wanted in names]
        self.categories = [max(same, key=lambda category: used[category]) for same in of_name]
        of_image: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            if annotation.get("image_id") not in of_image:
                raise InputError(
                    f"annotations: {self.file}: annotation {annotation.get('id')} is of image "
                    f"{annotation.get('image_id')}, which the file does not have"
                )
            if annotation.get("category_id") not in categories:
                raise InputError(
                    f"annotations: {self.file}: annotation {annotation.get('id')} has category "
                    f"{annotation.get('category_id')}, expected one of {', '.join(map(str, categories))}"
                )
            if annotation["category_id"] in label_of:
                of_image[annotation["image_id"]].append(annotation)
        troubles = Troubles()
        self.ids, self.paths, found = [], [], []
        for image in content["images"]:
            self.ids.append(image["id"])
            self.paths.append(folder / image["file_name"])
            found.append(_objects(of_image[image["id"]], label_of, image, masks, troubles))
        objects = sum(map(len, of_image.values()))
        if objects and troubles.counts().get(MASKLESS) == objects:
            raise InputError(f"masks: none of the objects in {self.file} has a segmentation")
        super().__init__(split, names, [path.name for path in self.paths], found, transform, troubles)

    def load(self, index: int) -> np.ndarray:
        return read_image(self.paths[index], 3)

    def decode(self, mask: object, height: int, width: int) -> np.ndarray:
        """Polygons or a run-length code, as pycocotools decodes them."""
        return decode_any(mask, height, width)

    def image_id(self, index: int) -> int:
        return self.ids[index]


def _read(file: Path) -> dict:
    if not file.is_file():
        raise InputError(f"annotations: no file {file}")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(f"annotations: {file} is no whole JSON file: {error}") from error
    wanted = {"images": ("id", "file_name"), "annotations": ("bbox",), "categories": ("id", "name")}
    for part, keys in wanted.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(e, dict) and all(k in e for k in keys) for e in entries):
            raise InputError(f"annotations: {file}: {part!r} is no list of objects with {', '.join(keys)}")
    if not content["images"]:
        raise InputError(f"annotations: {file} has no images")
    print_log(
        f"{file}: {len(content['images'])} images, {len(content['annotations'])} objects",
        logger="current",
        level=logging.INFO,
    )
    return content


def _objects(
    annotations: list[dict], label_of: dict[int, int], image: dict, masks: bool, troubles: Troubles
) -> Objects:
    """Those of one image. Where masks are asked for, one without is taken for a crowd with its box as mask."""
    try:
        boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
        areas = np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in annotations], np.float32)
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"annotations: {image['file_name']} has a bbox that is no list of four numbers") from error
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([label_of[a["category_id"]] for a in annotations], np.int64)
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool)
    segmentations = None
    if masks:
        segmentations = [_mask(a, image["file_name"], troubles) for a in annotations]
        for i, mask in enumerate(segmentations):
            if not mask:
                troubles.add(MASKLESS, image["file_name"])
                left, top, right, bottom = boxes[i].tolist()
                segmentations[i], crowd[i] = [[left, top, right, top, right, bottom, left, bottom]], True
        segmentations = tuple(segmentations)
    size = (image["height"], image["width"]) if image.get("height") and image.get("width") else None
    keep = sound_boxes(boxes, size, image["file_name"], troubles)
    return Objects(boxes, labels, crowd, segmentations, areas).only(keep)


def _mask(annotation: dict, file: str, troubles: Troubles) -> list | dict | None:
    """Its polygons of at least three points, or its run-length code; None for neither."""
    found = annotation.get("segmentation")
    if isinstance(found, dict):
        return found if "counts" in found and "size" in found else None
    if not isinstance(found, list):
        return None
    whole = [part for part in found if isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0]
    for _ in range(len(found) - len(whole) if whole else 0):
        troubles.add("polygons of fewer than three points dropped", file)
    return whole
