"""Boxes and masks in COCO's form: one JSON file for all images."""

import json
import logging
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
        classes: names of the categories to use, in this order; None is all of them in the order of their ids.

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
        names = tuple(categories.values()) if classes is None else tuple(classes)
        if missing := [name for name in names if name not in categories.values()]:
            raise InputError(f"classes: {self.file} has no category {', '.join(missing)}")
        self.categories = [next(i for i, name in categories.items() if name == wanted) for wanted in names]
        label_of = {category: 1 + label for label, category in enumerate(self.categories)}
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
        if masks and not any(found_.masks for found_ in found):
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
    """Those of one image; without a mask, where masks are asked for, an object is dropped."""
    if masks:
        whole = [a for a in annotations if _has_mask(a)]
        for _ in range(len(annotations) - len(whole)):
            troubles.add("objects without a mask dropped", image["file_name"])
        annotations = whole
    try:
        boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
    except (TypeError, ValueError) as error:
        raise InputError(f"annotations: {image['file_name']} has a bbox that is no list of four numbers") from error
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([label_of[a["category_id"]] for a in annotations], np.int64)
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool)
    size = (image["height"], image["width"]) if image.get("height") and image.get("width") else None
    keep = sound_boxes(boxes, labels, size, image["file_name"], troubles)
    segmentations = tuple(a["segmentation"] for a in annotations) if masks else None
    return Objects(boxes, labels, crowd, segmentations).only(keep)


def _has_mask(annotation: dict) -> bool:
    """Whether it has polygons of at least three points, or a run-length code."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return "counts" in segmentation and "size" in segmentation
    return bool(segmentation) and all(isinstance(part, list) and len(part) >= 6 for part in segmentation)
